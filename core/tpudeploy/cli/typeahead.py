"""What is typed while an answer runs waits for the next prompt instead of standing in the middle of the answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tpudeploy.cli.line_reader import is_dumb


@contextmanager
def keys_wait() -> Iterator[None]:
    """Within the block the terminal shows no keys and keeps them, Ctrl-D included; Ctrl-C works as ever.

    Nothing changes where a dumb terminal edits its lines by itself.
    """
    try:
        import termios

        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
    except (ImportError, OSError, ValueError, termios.error):  # no terminal, or none of this kind
        yield
        return
    if is_dumb():
        yield
        return
    during = list(before)
    during[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(terminal, termios.TCSANOW, during)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def forget_keys() -> None:
    """What was typed before a question was there is no answer to it."""
    with suppress(ImportError, OSError, ValueError):
        import termios

        with suppress(termios.error):
            termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
