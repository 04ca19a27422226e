"""What to ask a model when it is verified."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.chat import Message
from tpudeploy.errors import CheckpointError

if TYPE_CHECKING:
    from tpudeploy.compile.source import ModelSource

DIALOGUES_NAME = "dialogues.json"
"""What a bundled checkpoint can answer; it lies beside the checkpoint's folder, in the plugin."""
_MOST_DIALOGUES = 4
_QUESTIONS = {
    "chat-zh": "请使用C++写一段冒泡排序算法。",
    "chat-en": "What is the capital of France? Answer in one sentence.",
}
_RANDOM_TOKENS = (7, 23)
_SEED = 20240501


class Prompt(Value):
    """A prompt with a name for the table."""

    name: str
    ids: tuple[int, ...]


def default_prompts(source: ModelSource, *, chunk_tokens: int, longest: int) -> tuple[Prompt, ...]:
    """What fits the model: dialogues where it ships some, else questions, else (without a tokenizer) random ids.

    :param chunk_tokens: tokens of the largest prefill pass; one random prompt is longer, so that chunks are joined.
    :param longest: tokens of a prompt at most; longer ones are left out.
    :raises TokenizerError: the tokenizer is corrupt, or another model's.
    :raises CheckpointError: the dialogues that ship with the model cannot be read.
    """
    prompts = list(_chats(source)) or list(_random_prompts(source, chunk_tokens))
    return tuple(prompt for prompt in prompts if len(prompt.ids) <= longest)


def _chats(source: ModelSource) -> Iterator[Prompt]:
    folder = source.checkpoint.folder
    if not any((folder / name).is_file() for name in source.adapter.tokenizer_files()):
        return
    template = source.adapter.chat_template(source.adapter.load_tokenizer(folder, source.config))
    conversations = _dialogues(source) or {
        name: [Message(role="user", content=question)] for name, question in _QUESTIONS.items()
    }
    for name, messages in conversations.items():
        yield Prompt(name=name, ids=tuple(template.encode(messages)))


def _dialogues(source: ModelSource) -> dict[str, list[Message]]:
    """The questions of some of the dialogues that ship with the model: up to the first answer."""
    path = _dialogues_path(source)
    if path is None:
        return {}
    try:
        dialogues = json.loads(path.read_text(encoding="utf-8"))
        chosen = dialogues[:: max(1, len(dialogues) // _MOST_DIALOGUES)][:_MOST_DIALOGUES]
        return {dialogue["name"]: _question(dialogue["messages"]) for dialogue in chosen}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not hold dialogues: {error}.") from error


def _dialogues_path(source: ModelSource) -> Path | None:
    bundled = [variant.bundled for variant in source.adapter.variants() if variant.name == source.variant]
    paths = [folder.parent / DIALOGUES_NAME for folder in bundled if folder is not None]
    return next((path for path in paths if path.is_file()), None)


def _question(messages: list[object]) -> list[Message]:
    asked: list[Message] = []
    for message in map(Message.model_validate, messages):
        if message.role == "assistant":
            break
        asked.append(message)
    return asked


def _random_prompts(source: ModelSource, chunk_tokens: int) -> Iterator[Prompt]:
    dice = random.Random(_SEED)  # noqa: S311 - the same prompts each time
    for tokens in (*_RANDOM_TOKENS, chunk_tokens + chunk_tokens // 2):
        ids = tuple(dice.randrange(source.config.vocab_size) for _ in range(tokens))
        yield Prompt(name=f"random-{tokens}", ids=ids)
