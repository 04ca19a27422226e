"""Ctrl-C stops the answer, or the tool, not the program."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_sets_flag() -> Iterator[threading.Event]:
    """Within the block the first Ctrl-C only sets the event; a second one interrupts as usual.

    So a device is never left in the middle of a net, while what hangs can still be stopped.
    """
    flag = threading.Event()

    def stop(number: int, frame: object) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    try:
        previous = signal.signal(signal.SIGINT, stop)
    except ValueError:  # not the main thread: signals are someone else's business
        yield flag
        return
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def interrupt_raises() -> Iterator[None]:
    """Within the block Ctrl-C raises KeyboardInterrupt at once, also inside of :func:`interrupt_sets_flag`."""
    try:
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    except ValueError:  # not the main thread: signals are someone else's business
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
