"""What differs from one demo model to the next; everything else in this folder serves all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpudeploy.contracts.adapter import ModelAdapter
from tpudeploy.contracts.chat import Message
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.plugins import registry

_PLUGINS = Path(__file__).parents[2] / "plugins"


class Family(ABC):
    """One model family's demo: its size, its vocabulary, its words and its checkpoint format.

    How prompts are written is not here: that is the plugin's own template, see :class:`.samples.Sampler`.
    """

    name: str
    """The model's name, for users and in the plugin's entry point."""
    config: DecoderConfig
    """Size and element type of the demo."""
    config_fields: Mapping[str, Any]
    """What config.json says beside the sizes and the flags that all families share."""
    steps = 1500
    """Training steps that the committed checkpoint had, apart from those after it was resumed."""

    @property
    def adapter(self) -> ModelAdapter:
        """The plugin that the demo ships in."""
        return registry().model(self.name)

    @property
    def folder(self) -> Path:
        """Where the demo lies in that plugin: dialogues.json, and the checkpoint in a folder of its own."""
        return _PLUGINS / self.name / f"tpudeploy_{self.name}" / "demo"

    @abstractmethod
    def tokenizer_files(self, conversations: Sequence[Sequence[Message]], texts: Sequence[str]) -> dict[str, bytes]:
        """Train a vocabulary, and return the tokenizer's files by name; the same texts give the same bytes.

        :param conversations: what it should write in few tokens, system prompts with tools included.
        :param texts: more texts that it should know.
        """

    @abstractmethod
    def stop_id(self, message: Message, special_ids: Mapping[str, int]) -> int:
        """The token with which the assistant ends ``message``."""

    def reword(self, text: str) -> str:
        """A text of the shared dialogues and variations, as this demo says it."""
        return text

    def adapt(self, message: Message) -> Message:
        """A message of the shared dialogues, reworded, its tools and calls written as this family does."""
        return message.model_copy(update={"content": self.reword(message.content)})
