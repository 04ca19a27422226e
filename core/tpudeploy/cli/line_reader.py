'''Reading what a person types: one message at a time, of several lines between """ and """.

A terminal that understands escape sequences gets an editor (:mod:`tpudeploy.cli.line_editor`); a dumb one types lines.
'''

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from tpudeploy.cli.terminal import print_line

PROMPT = ">>> "
CONTINUATION = "... "
QUOTES = '"""'


class LineReader(ABC):
    """Reads messages from the terminal."""

    @abstractmethod
    def read(self) -> str:
        """One message as it was typed; what stands between quotes may have several lines: see :func:`unquote`.

        :raises EOFError: Ctrl-D.
        :raises KeyboardInterrupt: Ctrl-C where nothing was typed; otherwise it clears what was.
        """


class PlainReader(LineReader):
    """Lines as the terminal itself edits them: no history, no escape sequences."""

    def read(self) -> str:
        """See :meth:`LineReader.read`; Ctrl-C always raises."""
        try:
            lines = [clean(input(PROMPT))]
            while is_open("\n".join(lines)):
                lines.append(clean(input(CONTINUATION)))
        except (EOFError, KeyboardInterrupt):
            print_line()  # the terminal leaves the cursor behind what was typed
            raise
        return "\n".join(lines)


def line_reader(history: Path | None, commands: Mapping[str, str]) -> LineReader:
    """What suits this terminal.

    :param history: a file that keeps what was typed; None keeps nothing.
    :param commands: what is completed, each with its meaning.
    """
    if is_dumb():
        return PlainReader()
    from tpudeploy.cli.line_editor import LineEditor

    return LineEditor(history, commands)


def is_dumb() -> bool:
    """Whether the terminal understands no escape sequences."""
    return os.environ.get("TERM", "").lower() in ("", "dumb", "unknown") or not sys.stdout.isatty()


def is_open(text: str) -> bool:
    """Whether a message, or what follows a command, began with quotes that were not closed yet."""
    quoted = text.lstrip()
    if quoted.startswith("/"):
        quoted = quoted.partition(" ")[2].lstrip()
    if not quoted.startswith(QUOTES):
        return False
    rest = quoted.removeprefix(QUOTES)
    return not rest.rstrip().endswith(QUOTES)


def unquote(text: str) -> str:
    """A message without the quotes around it; with none, or after a command, it is as it was typed."""
    quoted = text.strip()
    if len(quoted) < 2 * len(QUOTES) or not (quoted.startswith(QUOTES) and quoted.endswith(QUOTES)):
        return text
    return quoted.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")


def clean(text: str) -> str:
    """Text without what is no character: bytes that were no UTF-8 arrive as halves of a surrogate pair."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
