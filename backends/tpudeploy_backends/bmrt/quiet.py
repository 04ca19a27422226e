"""Keeps the vendor's libraries from writing to the user's terminal: they log to standard output."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_TAIL_LINES = 5


class Captured:
    """What was written meanwhile; complete once the block was left."""

    def __init__(self) -> None:
        self.text = ""

    def tail(self) -> str:
        """The last lines, in one, for an error message."""
        lines = [line.strip() for line in self.text.splitlines() if line.strip()]
        return " | ".join(lines[-_TAIL_LINES:])


@contextmanager
def captured_output() -> Iterator[Captured]:
    """Divert file descriptors 1 and 2 of this process to a file, also for C code.

    For loading and closing, not for launches: another thread's output would be diverted too.
    """
    captured = Captured()
    with tempfile.TemporaryFile() as stream:
        saved = [(number, os.dup(number)) for number in (1, 2)]
        _flush()
        for number, _ in saved:
            os.dup2(stream.fileno(), number)
        try:
            yield captured
        finally:
            _flush()
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)
            stream.seek(0)
            captured.text = stream.read().decode("utf-8", "replace")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    ctypes.CDLL(None).fflush(None)
