"""Child processes that end with us: each leads a process group, and a group is killed as a whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

_running: set[subprocess.Popen[bytes]] = set()
_running_lock = threading.Lock()


def start(
    command: Sequence[str], *, output: IO[bytes], env: Mapping[str, str], cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own, without input; wait for it with ``wait``.

    :param output: gets its stdout and stderr.
    :raises OSError: it cannot be started.
    """
    process: subprocess.Popen[bytes] | None = None
    try:
        # In the middle of starting, an interruption would leave a process behind that nobody knows of.
        with _interruption_waits(), _running_lock:
            process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            _running.add(process)
    except BaseException:
        if process is not None:
            kill_group(process)
            _running.discard(process)
        raise
    return process


@contextlib.contextmanager
def _interruption_waits() -> Iterator[None]:
    """Keep Ctrl-C until the block has ended; only the main thread hears of it at all."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    kept: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: kept.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if kept:
        previous(*kept[0])


def wait(process: subprocess.Popen[bytes], timeout_s: float | None = None) -> int | None:
    """The exit code, or ``None`` after a timeout, when the whole group has been killed.

    If waiting is cut short (Ctrl-C arrives as an exception), the group is killed too.
    """
    with _killed_on_error(process):
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            kill_group(process)
            return None


def watch(process: subprocess.Popen[bytes], every_s: float, report: Callable[[], None]) -> int:
    """As ``wait``, without a timeout; calls ``report`` now and then meanwhile."""
    with _killed_on_error(process):
        while True:
            try:
                return process.wait(every_s)
            except subprocess.TimeoutExpired:
                report()


@contextlib.contextmanager
def _killed_on_error(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        kill_group(process)
        raise
    finally:
        with _running_lock:
            _running.discard(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that ``start`` started, and whatever it started, and collect it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def stop_running_tools() -> None:
    """Kill every vendor call that any thread waits for; each then fails in its own thread.

    Ctrl-C reaches only the main thread, while the calls run in others, each in a process group of its own.
    """
    with _running_lock:
        for process in _running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
