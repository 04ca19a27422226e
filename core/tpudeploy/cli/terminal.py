"""What the commands know about the terminal: streams, width, tables and JSON."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

_LINE_ENDS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}
"""Ends of a line for Unicode (and Python's splitlines), which JSON leaves as they are."""
_UNWRAPPED = 1_000_000
_LEAST_ROOM = 30
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def prepare_streams() -> None:
    """Read and write in any locale: what the terminal cannot show is escaped, and typed bytes that are no
    characters become halves of surrogate pairs; neither is a crash.

    A stream that the caller closed (``>&-``) is None in Python; it becomes one that swallows everything.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - open to the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def silence_stdout() -> None:
    """Stdout takes nothing any more: let nobody, not even the interpreter's last flush, complain about it."""
    try:
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
    except (OSError, ValueError):
        return


def is_interactive() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print one JSON document on stdout. :param indent: None for a single line, by anybody's idea of a line."""
    plain = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") != "utf8"
    sys.stdout.write(json.dumps(value, ensure_ascii=plain, indent=indent).translate(_LINE_ENDS) + "\n")


def print_line(text: str = "") -> None:
    """Print one line on stdout."""
    sys.stdout.write(text + "\n")


def print_note(text: str) -> None:
    """Print one line on stderr: what is said beside the result."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print a table of short cells on stdout, the same on a terminal and in a pipe.

    :param right: indices of columns of numbers.
    """
    cells = [[printable(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(_columns, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        spaces = [" " * (width - _columns(cell)) for cell, width in zip(row, widths, strict=True)]
        sized = enumerate(zip(row, spaces, strict=True))
        print_line("  ".join(space + cell if i in right else cell + space for i, (cell, space) in sized).rstrip())


def _columns(text: str) -> int:
    """How wide a terminal shows printable text: Chinese takes two columns a character."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else unicodedata.combining(c) == 0 for c in text)


def print_facts(facts: Sequence[tuple[str, str]], *, indent: str = "") -> None:
    """Print names with what belongs to them, one below the other; a terminal wraps long texts beside their names."""
    import textwrap

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNWRAPPED
    names = max(len(name) for name, _ in facts)
    for name, text in facts:
        head = f"{indent}{name:<{names}}  "
        room = max(width - len(head), _LEAST_ROOM)
        lines = textwrap.wrap(printable(text), room, break_long_words=False, break_on_hyphens=False) or [""]
        print_line((head + f"\n{' ' * len(head)}".join(lines)).rstrip())


def printable(text: str) -> str:
    """``text`` without control characters, with which a model or a plugin could take over a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\N{REPLACEMENT CHARACTER}" for c in text)


def escaped(text: str) -> str:
    """``text`` on one line, with everything in it written out that does not show as itself.

    Controls, line ends and changes of direction: what a person is asked about must be what is done.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def format_bytes(count: int) -> str:
    """``12.5 GB``: three figures, decimal units."""
    for size, unit in _UNITS:
        if count >= size:
            number = count / size
            return f"{number:.0f} {unit}" if number >= 100 else f"{number:.1f} {unit}"
    return f"{count} B"


def format_count(count: int) -> str:
    """``6.2 B``, ``1.6 M``: a number of parameters."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def format_seconds(seconds: float) -> str:
    """``4.2 s``, ``1:03:20``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
