"""Texts and conversations to token ids, one JSON line each; works without weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, StrictBool, ValidationError

from tpudeploy.compile.source import local_folder, parse_model
from tpudeploy.contracts.chat import Message
from tpudeploy.errors import TokenizerError, TpuDeployError, UsageError
from tpudeploy.launch.text import TextTools, load_text
from tpudeploy.plugins import PluginRegistry
from tpudeploy.settings import Settings


class _Line(BaseModel):
    """One line of a batch; fields that it does not know are the user's own."""

    model_config = ConfigDict(extra="ignore")

    text: str | None = None
    messages: list[Message] | None = None
    add_generation_prompt: StrictBool = True


def tokenizer_for(model: str, folder: Path | None, registry: PluginRegistry, settings: Settings) -> TextTools:
    """The tokenizer of a model, from ``folder`` or from its checkpoint on this machine.

    :raises UnknownNameError: no such model.
    :raises TokenizerError: no tokenizer there, or one of another model.
    """
    adapter, variant = parse_model(model, registry)
    folder = folder or local_folder(adapter, variant, settings)
    if folder is None:
        raise TokenizerError(
            f"there is no tokenizer for {adapter.name}:{variant.name} on this machine.",
            hint="Give --tokenizer-dir a folder that holds the model's tokenizer files.",
        )
    return load_text(adapter, folder)


def encode_batch(lines: Iterable[bytes], tools: TextTools, *, name: str) -> Iterator[dict[str, Any]]:
    """Encode each line; blank ones are skipped.

    :param lines: JSON objects in UTF-8.
    :param name: what the lines come from, for errors.
    :raises UsageError: a line that cannot be encoded; it names the line's number.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            encoded = encode_line(_parse(line, first=number == 1), tools)
        except TpuDeployError as error:
            raise UsageError(f"{name}, line {number}: {error.message}", hint=error.hint) from error
        yield encoded


def encode_line(content: Any, tools: TextTools) -> dict[str, Any]:
    """``{"ids", "text"}`` of one text, without prefix, or of one conversation.

    :param content: ``{"text"}`` or ``{"messages", "add_generation_prompt"}``; the latter is true by default.
    :raises UsageError: neither, both, or not of these types.
    """
    if not isinstance(content, dict):
        raise UsageError("it is no JSON object.", hint=_SHAPE)
    try:
        line = _Line.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{_explain(error)}.", hint=_SHAPE) from error
    if (line.text is None) == (line.messages is None):
        raise UsageError('it must have either "text" or "messages".', hint=_SHAPE)
    if line.text is not None:
        ids = tools.tokenizer.encode(line.text)
    else:
        ids = tools.template.encode(line.messages or [], add_generation_prompt=line.add_generation_prompt)
    return {"ids": ids, "text": tools.tokenizer.decode(ids)}


_SHAPE = 'Write {"text": "..."} or {"messages": [{"role": "user", "content": "..."}], "add_generation_prompt": true}.'


def _parse(line: bytes, *, first: bool) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"it is not UTF-8 (byte {error.start + 1}).") from error
    except RecursionError as error:
        raise UsageError("it is nested too deeply.") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"it is not JSON: {error.msg} (column {error.colno}).", hint=_SHAPE) from error


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])
