"""Running the real program: in a process of its own, with or without a terminal."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import cast

import pytest
from typing_extensions import Self

from tpudeploy.cli.main import run_command

PROGRAM = (sys.executable, "-m", "tpudeploy.cli.main")
_OWN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def environment(home: Path, **changes: str) -> dict[str, str]:
    """This process's environment with a home of the test's own, and no other setting of tpudeploy."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TPUDEPLOY_", "HF_", "_TPU"))}
    return kept | {"TPUDEPLOY_HOME": str(home), "PYTHONUTF8": "1", "TERM": "dumb"} | changes


@dataclass(frozen=True)
class Done:
    """What a command said, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def run_program(
    *arguments: str | Path, env: Mapping[str, str], stdin: str | bytes = b"", cwd: Path | None = None
) -> Done:
    """Run a command in a process of its own, without a terminal."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)], input=data, capture_output=True, env=dict(env), cwd=cwd, check=False
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def run_cli(*arguments: str | Path, env: Mapping[str, str], stdin: str | bytes = b"") -> Done:
    """Run a command in this process, which has imported torch already; otherwise like :func:`run_program`."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    outside = set(os.environ)
    streams = [io.TextIOWrapper(io.BytesIO(content), "utf-8") for content in (data, b"", b"")]
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        try:
            code = run_command([str(argument) for argument in arguments])
        finally:
            # A command may set variables for its own process (--offline, --toolchain): not for the next test.
            for name in set(os.environ) - outside - set(env):
                del os.environ[name]
        said = []
        for stream in streams[1:]:
            stream.flush()
            said.append(cast(io.BytesIO, stream.buffer).getvalue().decode())
    return Done(code, *said)


class Terminal:
    """A command in a terminal of its own, and a person who reads and types."""

    def __init__(self, *arguments: str | Path, env: Mapping[str, str], columns: int = 80, rows: int = 24) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        command = [sys.executable, "-c", _OWN_TERMINAL, *PROGRAM, *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=dict(env))
        os.close(slave)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a read may end within a character
        self._unread = ""
        self.seen = ""

    def expect(self, text: str, *, timeout_s: float = 120) -> str:
        """Read until ``text`` was shown; returns what came before it."""
        deadline = time.monotonic() + timeout_s
        while text not in self._unread:
            if not self._read(max(0.0, deadline - time.monotonic())):
                raise AssertionError(f"{text!r} was not shown; the terminal has:\n{self.seen}")
        before, _, self._unread = self._unread.partition(text)
        return before

    def type(self, text: str) -> None:
        """Press keys; ``\\x03`` is Ctrl-C, ``\\x04`` is Ctrl-D, ``\\udcff`` a byte that is no UTF-8."""
        os.write(self._master, text.encode(errors="surrogateescape"))

    def kill(self, number: int) -> None:
        """Send a signal to the program itself."""
        self._process.send_signal(number)

    def wait(self, *, timeout_s: float = 60) -> int:
        """Wait for the end; returns the exit code."""
        deadline = time.monotonic() + timeout_s
        while self._process.poll() is None and time.monotonic() < deadline:
            self._read(0.1)
        code = self._process.wait(timeout=1)
        while self._read(0):  # what it wrote last
            pass
        return code

    def _read(self, timeout_s: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], timeout_s)
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other end is closed
            return False
        text = self._decoder.decode(data).replace("\r\n", "\n")
        self.seen += text
        self._unread += text
        return bool(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        os.close(self._master)
