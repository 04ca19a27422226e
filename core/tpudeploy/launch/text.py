"""A model's tokenizer and chat template, from a checkpoint or a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpudeploy.contracts.adapter import ModelAdapter
from tpudeploy.contracts.chat import ChatTemplate, Message, Tokenizer
from tpudeploy.contracts.decoder import DecoderConfig


@dataclass(frozen=True)
class TextTools:
    """What turns a conversation into token ids and back."""

    tokenizer: Tokenizer
    template: ChatTemplate

    def prompt_ids(self, text: str, *, system: str = "", tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        """Ids of a conversation's first question, ready to be answered. :param tools: function schemas to offer."""
        head = [Message(role="system", content=system, tools=tuple(tools))] if system or tools else []
        return self.template.encode([*head, Message(role="user", content=text)])


def load_text(adapter: ModelAdapter, folder: Path, config: DecoderConfig | None = None) -> TextTools:
    """Load the tokenizer that lies in ``folder``.

    :raises TokenizerError: missing, corrupt, or another model's.
    """
    tokenizer = adapter.load_tokenizer(folder, config)
    return TextTools(tokenizer, adapter.chat_template(tokenizer))


def has_tokenizer(adapter: ModelAdapter, folder: Path) -> bool:
    """Whether any of the tokenizer's files lies in ``folder``."""
    names: Sequence[str] = adapter.tokenizer_files()
    return any((folder / name).is_file() for name in names)
