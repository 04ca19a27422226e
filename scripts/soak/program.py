"""The server as a process of its own: how it is started, and what it holds."""

from __future__ import annotations

import contextlib
import queue
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from typing_extensions import Self

CLIENTS = ("one", "two", "three", "four")
MAX_QUEUE = 18
"""Fewer than the clients have under way, so that now and then it is full."""
MAX_BODY = 1_000_000
START_S = 900.0
"""The first start compiles the model."""


@dataclass(frozen=True)
class Held:
    """What a process holds at a moment; memory in bytes.

    :param kept: conversations that it keeps on the host, part of ``uss``; they have a limit of their own.
    """

    rss: int
    uss: int
    files: int
    threads: int
    kept: int = 0


class Program:
    """``tpudeploy serve`` with a key for each client; a context manager.

    :param arguments: of ``serve``.
    :ivar keys: of :data:`CLIENTS`, in their order.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.keys = [secrets.token_urlsafe(24) for _ in CLIENTS]
        self._arguments = arguments
        self._folder = tempfile.TemporaryDirectory(prefix="soak-")
        self._log = Path(self._folder.name) / "log"

    def __enter__(self) -> Self:
        keys = Path(self._folder.name) / "keys"
        keys.write_text("\n".join(self.keys))
        limits = ("--max-queue", str(MAX_QUEUE), "--max-body", str(MAX_BODY), "--api-key-file", str(keys))
        command = [sys.executable, "-m", "tpudeploy.cli.main", "serve", *self._arguments, "--port", "0", *limits]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self.url = self._await_url()
        self._looked_at = psutil.Process(self._process.pid)
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._folder.cleanup()

    def held(self, kept: int) -> Held:
        """What it holds now. :param kept: see :class:`Held`."""
        with self._looked_at.oneshot():
            memory = self._looked_at.memory_full_info()
            files, threads = self._looked_at.num_fds(), self._looked_at.num_threads()
            return Held(memory.rss, memory.uss, files, threads, kept)

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def terminate(self) -> None:
        """Ask it to stop."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code; None where it goes on for longer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout_s)
        return None

    def _await_url(self) -> str:
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        out = self._process.stdout
        assert out is not None
        threading.Thread(target=lambda: [lines.put(line) for line in out], daemon=True).start()
        deadline = time.monotonic() + START_S
        while self.runs and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                if found := re.search(r"http://[\d.]+:\d+", lines.get(timeout=1)):
                    return found.group()
        self._process.kill()
        raise SystemExit(f"the server did not start:\n{self.log}")
