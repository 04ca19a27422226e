'''Reading what a person types: history, editing, and several lines between """ and """.'''

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import ModuleType

PROMPT = ">>> "
CONTINUATION = "... "
QUOTES = '"""'
_HISTORY_LINES = 1000


class LineReader:
    """Reads messages from the terminal.

    :param history: a file that keeps what was typed; None keeps nothing. It is readable by its owner only.
    """

    def __init__(self, history: Path | None = None) -> None:
        self._history = history
        self._readline = _import_readline()
        if self._readline is not None and history is not None:
            with suppress(OSError):
                self._readline.read_history_file(history)

    def read(self) -> str:
        """One message.

        :raises EOFError: Ctrl-D.
        :raises KeyboardInterrupt: Ctrl-C; what was typed is forgotten.
        """
        line = input(PROMPT)
        if not line.lstrip().startswith(QUOTES):
            return line
        lines = [line.lstrip().removeprefix(QUOTES)]
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(input(CONTINUATION))
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines).strip("\n")

    def close(self) -> None:
        """Keep the history; a disk that does not take it is no reason to fail."""
        if self._readline is None or self._history is None:
            return
        with suppress(OSError):
            self._history.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._history, os.O_CREAT | os.O_WRONLY, 0o600))
            self._readline.set_history_length(_HISTORY_LINES)
            self._readline.write_history_file(self._history)


def _import_readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:  # a Python built without it: plain input works
        return None
    return readline
