"""Run one vendor call: in a process group of its own, its output in a log, its failure explained."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from tpudeploy.compile.toolchain.model import Toolchain
from tpudeploy.compile.toolchain.process import start, stop_running_tools, wait
from tpudeploy.errors import CompileError, StorageError, ToolchainError, TpuDeployError

__all__ = ["meaningful_lines", "oom_kills", "run_logged", "run_tool", "stop_running_tools"]

LAST_LINES = 20
TAIL_BYTES = 256 * 1024
# The vendor's tools mostly say something else when the disk is full, or nothing. So a failure with less than this
# left counts as that, and with (nearly) nothing left even a success does not count.
LOW_DISK_BYTES = 64 << 20
FULL_DISK_BYTES = 1 << 20
# Lines that tell nothing about the cause: stack frames, rulers, and the frames of a Python traceback.
NOISE = re.compile(
    r"^\s*(#\d+ 0x|\d+\.\s+Program arguments|Stack dump:|PLEASE submit a bug report|Traceback \(most recent"
    r"|[=\-_|'.\s]*$|\[\s*\] \d+%|\[0\] \[DBG\])"
)
# A frame of a Python traceback: where, and the line of code.
FRAME = re.compile(r"^\s*File \".*\n\s{4}.*\n", re.MULTILINE)
CANNOT_LOAD = re.compile(r"error while loading shared libraries|version `\w+_[\d.]+' not found|stack smashing")
DISK_FULL = re.compile(r"no space left on device|ENOSPC|disk quota exceeded", re.IGNORECASE)
NO_MEMORY = re.compile(r"bad_alloc|cannot allocate memory|MemoryError|out of memory", re.IGNORECASE)


def run_tool(
    toolchain: Toolchain,
    tool: str,
    args: Sequence[str | Path],
    *,
    cwd: Path,
    log: Path,
    timeout_s: float | None = None,
) -> None:
    """Run one of TPU-MLIR's tools and wait for it.

    :param tool: one of ``model.TOOLS``.
    :param args: its arguments; files by names relative to ``cwd`` (the vendor builds shell commands of them).
    :param cwd: the working folder, where the tool leaves its files.
    :param log: gets the command line and all output, appended, while the tool runs.
    :param timeout_s: kill the tool and everything it started after this time.
    :raises CompileError: the tool failed, timed out or was killed for want of memory.
    :raises ToolchainError: the tool cannot be started at all.
    :raises StorageError: the disk is full.
    """
    run_logged(toolchain.command(tool, *args), cwd=cwd, log=log, env=toolchain.environment(), timeout_s=timeout_s)


def run_logged(
    command: Sequence[str],
    *,
    cwd: Path,
    log: Path,
    env: Mapping[str, str],
    timeout_s: float | None = None,
) -> None:
    """As ``run_tool``, for any command; raises the same."""
    log.parent.mkdir(parents=True, exist_ok=True)
    killed_before = oom_kills()
    with log.open("ab") as file:
        file.write(f"$ {shlex.join(command)}\n".encode())
        file.flush()
        begin = file.tell()
        try:
            process = start(command, output=file, env=env, cwd=cwd)
        except OSError as error:
            raise _cannot_start(command[0], error) from error
        code = wait(process, timeout_s)
    if code == 0 and shutil.disk_usage(cwd).free >= FULL_DISK_BYTES:
        return
    raise _failure(command, code, log, begin, cwd, oom=oom_kills() > killed_before, timeout_s=timeout_s)


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since boot; 0 where it does not say."""
    try:
        text = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return 0
    match = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(match[1]) if match else 0


def meaningful_lines(log: Path, begin: int = 0) -> list[str]:
    """The last lines of a log that say something (at most ``LAST_LINES``), from byte ``begin`` on."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(begin, size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", FRAME.sub("", text))]
    return [line for line in lines if line and not NOISE.match(line)][-LAST_LINES:]


def _cannot_start(program: str, error: OSError) -> ToolchainError:
    return ToolchainError(
        f"cannot start {program}: {error.strerror} ({error.filename}).",
        hint="Run `tpudeploy toolchain status` to see what is wrong with the toolchain.",
    )


def _failure(
    command: Sequence[str],
    code: int | None,
    log: Path,
    begin: int,
    cwd: Path,
    *,
    oom: bool,
    timeout_s: float | None,
) -> TpuDeployError:
    """The error for a call that did not end well, with the cause if it can be told."""
    lines = meaningful_lines(log, begin)
    text = "\n".join(lines)
    tool = _tool_name(command)
    said = f"\nIts last words, from {log}:\n{text}\n" if lines else f" It said nothing (log: {log})."
    if code is None:
        return CompileError(f"{tool} was stopped after {timeout_s:.0f} s.{said}", hint="Allow it more time.")
    if DISK_FULL.search(text) or shutil.disk_usage(cwd).free < LOW_DISK_BYTES:
        return StorageError(
            f"{tool} failed: no space left on the disk of {cwd}.{said}", hint="Free some space and run it again."
        )
    if oom or code in (-signal.SIGKILL, 128 + signal.SIGKILL) or NO_MEMORY.search(text):
        return CompileError(
            f"{tool} was stopped, most likely because memory ran out.{said}",
            hint="Run fewer jobs at a time (--jobs 1), close other programs, or add swap space.",
        )
    if CANNOT_LOAD.search(text):
        return ToolchainError(
            f"{tool} does not run on this system.{said}",
            hint="Run `tpudeploy toolchain install`: it makes a TPU-MLIR that does.",
        )
    return CompileError(f"{tool} failed ({_ending(code)}).{said}", hint=f"The whole log is {log}.")


def _tool_name(command: Sequence[str]) -> str:
    """What to call the command: the launcher's tool, or the program."""
    names = [Path(part).name for part in command]
    if "launcher.py" in names:
        return names[names.index("launcher.py") + 2]
    return names[0]


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
