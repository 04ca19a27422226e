"""What to ask the model: from the command line, from stdin, or not known before a conversation begins."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tpudeploy.cli.options import parse_ids
from tpudeploy.cli.terminal import is_interactive
from tpudeploy.errors import UsageError


@dataclass(frozen=True)
class Question:
    """One prompt.

    :param text: what the user says; empty where token ids were given.
    :param ids: token ids to continue as they are.
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    system: str = ""


def read_question(prompt: str | None, prompt_ids: str, system: str, *, as_json: bool = False) -> Question | None:
    """The question, or None where there is to be a conversation.

    :raises UsageError: options that exclude each other, an empty prompt, or nobody there to converse with.
    """
    if prompt_ids:
        if prompt or system:
            raise UsageError("--prompt-ids excludes PROMPT and --system: ids are continued as they are.")
        return Question(ids=parse_ids(prompt_ids, "--prompt-ids"))
    if prompt is None and is_interactive() and not as_json:
        return None
    if prompt is None and sys.stdin.isatty():
        raise UsageError("there is no prompt.", hint="Give one as PROMPT, on stdin, or as --prompt-ids.")
    text = _read_stdin() if prompt is None or prompt == "-" else prompt
    if not text.strip():
        raise UsageError("the prompt is empty.", hint="Give one as PROMPT or on stdin.")
    return Question(text=text, system=system)


def _read_stdin() -> str:
    """All of stdin, without the newline that ends it."""
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8: byte {error.object[error.start]:#x} at {error.start}.") from error
