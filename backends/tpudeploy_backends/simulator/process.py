"""Starts the simulator's process and exchanges messages with it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from multiprocessing.connection import Connection
from typing import IO

from tpudeploy.contracts.dtypes import Array
from tpudeploy.errors import BackendError
from tpudeploy_backends.simulator import protocol
from tpudeploy_backends.simulator.protocol import Message

_WORKER = "tpudeploy_backends.simulator.worker"
_NOISE = ("do_allreduce",)
_TAIL_LINES = 4
_EXIT_TIMEOUT_S = 10


class SimulatorProcess:
    """A simulated chip's process.

    Each exchange is made by a thread of its own, so that a Ctrl-C in the caller never leaves half a message behind:
    the exchange is finished all the same, and the next one follows it.
    """

    def __init__(self) -> None:
        """:raises BackendError: the process could not be started."""
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - close() closes it
        # Its own folder, because the vendor's library may leave files where it runs.
        self._folder = tempfile.TemporaryDirectory(prefix="tpudeploy-simulator-")
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", _WORKER, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    cwd=self._folder.name,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    pass_fds=(theirs.fileno(),),
                )
            except OSError as error:
                ours.close()
                raise BackendError(f"cannot start the simulator's process: {error.strerror}.") from error
        self._connection = Connection(ours.detach())
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tpudeploy-simulator")
        self._exchanged: Future[tuple[Message, bytes]] | None = None

    def ask(self, request: Message, payload: Array | None = None) -> tuple[Message, bytes]:
        """Send a request and wait for its answer.

        :raises TpuDeployError: the request failed.
        :raises BackendError: the process died.
        """
        self._exchanged = self._thread.submit(self._exchange, request, payload)
        answer, content = self._exchanged.result()
        protocol.raise_error(answer)
        return answer, content

    def _exchange(self, request: Message, payload: Array | None) -> tuple[Message, bytes]:
        try:
            protocol.send(self._connection, request, payload)
            return protocol.receive(self._connection)
        except (EOFError, OSError) as error:
            raise BackendError(
                f"the simulator stopped ({self._exit_text()}): {self._log_tail()}.",
                hint="It has 4 GiB of memory and asserts what it was told; see `tpudeploy doctor`.",
            ) from error

    def _exit_text(self) -> str:
        try:
            code = self._process.wait(_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "still running"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def _log_tail(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines()]
        told = [line for line in lines if line and not any(noise in line for noise in _NOISE)]
        return " | ".join(told[-_TAIL_LINES:]) or "it said nothing"

    def close(self) -> None:
        """End the process, kindly while it answers. Idempotent."""
        try:
            if self._exchanged is not None:
                self._exchanged.exception(_EXIT_TIMEOUT_S)
            self._connection.close()
            self._process.wait(_EXIT_TIMEOUT_S)
        except (TimeoutError, FutureTimeoutError, subprocess.TimeoutExpired):
            pass  # it is in the middle of something: it is killed below
        finally:
            self._process.kill()
            self._process.wait()
            self._thread.shutdown()
            self._connection.close()
            self._log.close()
            self._folder.cleanup()
