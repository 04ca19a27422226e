"""Vendor calls: their output, their failures, and that nothing is left running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tpudeploy.compile.toolchain import process, run
from tpudeploy.errors import CompileError, StorageError, ToolchainError, TpuDeployError


def shell(script: str, tmp_path: Path, timeout_s: float | None = None) -> None:
    log = tmp_path / "logs" / "call.log"
    run.run_logged(["sh", "-c", script], cwd=tmp_path, log=log, env=dict(os.environ), timeout_s=timeout_s)


def failure(script: str, tmp_path: Path, kind: type[TpuDeployError] = CompileError) -> TpuDeployError:
    with pytest.raises(kind) as raised:
        shell(script, tmp_path)
    assert type(raised.value) is kind
    return raised.value


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def alive(pid: int) -> bool:
    """Whether a process runs (one that has ended and was not collected by its parent does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_output_goes_to_the_log_after_the_command(tmp_path: Path) -> None:
    shell("echo out; echo err >&2", tmp_path)
    shell("echo again", tmp_path)
    lines = (tmp_path / "logs" / "call.log").read_text().splitlines()
    assert lines == ["$ sh -c 'echo out; echo err >&2'", "out", "err", "$ sh -c 'echo again'", "again"]


def test_a_failure_shows_the_last_meaningful_lines_and_the_log(tmp_path: Path) -> None:
    script = r"""
for i in $(seq 100); do echo line $i; done
echo 'loc error: shape is wrong'
echo 'PLEASE submit a bug report to somebody'
echo 'Stack dump:'
echo '0.	Program arguments: tpuc-opt x.mlir'
for i in $(seq 40); do echo " #$i 0x000055d2ad51b27 (/some/where/tpuc-opt+0x95fb27)"; done
echo 'Traceback (most recent call last):'
printf '  File "model_deploy.py", line 822, in <module>\n    tool.build_model()\n'
echo 'RuntimeError: [!Error]: tpuc-opt x.mlir'
exit 7
"""
    error = failure(script, tmp_path)
    lines = error.message.splitlines()
    assert lines[0] == "sh failed (exit code 7)."
    assert str(tmp_path / "logs" / "call.log") in lines[1]
    shown = lines[2:]
    assert shown == [*(f"line {i}" for i in range(83, 101)), "loc error: shape is wrong", shown[-1]]
    assert shown[-1] == "RuntimeError: [!Error]: tpuc-opt x.mlir"
    assert error.exit_code == 5


def test_only_this_calls_lines_are_shown(tmp_path: Path) -> None:
    shell("echo of an earlier call", tmp_path)
    assert "earlier" not in failure("echo now; exit 1", tmp_path).message


def test_a_silent_failure_names_the_log(tmp_path: Path) -> None:
    assert "It said nothing (log:" in failure("exit 1", tmp_path).message


def test_a_crash_names_the_signal(tmp_path: Path) -> None:
    assert "signal SIGSEGV" in failure("kill -SEGV $$", tmp_path).message


@pytest.mark.parametrize("script", ["kill -KILL $$", "exit 137", "echo 'terminate: std::bad_alloc'; exit 1"])
def test_want_of_memory_is_recognised(script: str, tmp_path: Path) -> None:
    error = failure(script, tmp_path)
    assert "memory" in error.message
    assert "--jobs 1" in error.hint


def test_a_child_killed_by_the_kernel_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([3, 4])
    monkeypatch.setattr(run, "oom_kills", lambda: next(counts))
    assert "memory" in failure("echo 'RuntimeError: [!Error]: tpuc-opt'; exit 1", tmp_path).message


def test_the_kernels_count_is_read() -> None:
    assert run.oom_kills() >= 0


def test_a_full_disk_is_recognised_by_words(tmp_path: Path) -> None:
    error = failure("echo 'OSError: [Errno 28] No space left on device'; exit 1", tmp_path, StorageError)
    assert str(tmp_path) in error.message


@pytest.mark.parametrize(("free", "script"), [(1 << 24, "echo Assertion disk_no failed; exit 1"), (0, "true")])
def test_a_full_disk_is_recognised_by_looking(
    free: int, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vendor's tools fail with anything, or go on, when they cannot write."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert "no space left" in failure(script, tmp_path, StorageError).message


def test_a_program_that_does_not_load_is_the_toolchains_fault(tmp_path: Path) -> None:
    error = failure('echo "libc.so.6: version \\`GLIBC_2.36\' not found"; exit 1', tmp_path, ToolchainError)
    assert "tpudeploy toolchain install" in error.hint


def test_a_program_that_is_absent_is_the_toolchains_fault(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="cannot start"):
        run.run_logged([str(tmp_path / "absent")], cwd=tmp_path, log=tmp_path / "log", env={})


def test_a_timeout_kills_the_whole_group(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(CompileError, match=r"stopped after 0 s|stopped after 1 s"):
        shell("sleep 60 & echo $! > child; wait", tmp_path, timeout_s=0.5)
    assert time.monotonic() - started < 20
    child = int((tmp_path / "child").read_text())
    assert eventually(lambda: not alive(child))


def test_an_interruption_kills_the_whole_group(tmp_path: Path) -> None:
    def interrupt() -> None:
        eventually(lambda: (tmp_path / "child").exists() and bool((tmp_path / "child").read_text()))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        shell("sleep 60 & echo $! > child; wait", tmp_path)
    thread.join()
    child = int((tmp_path / "child").read_text())
    assert eventually(lambda: not alive(child))


def test_calls_of_other_threads_can_be_stopped(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def work() -> None:
        try:
            shell("sleep 60 & echo $! > child; wait", tmp_path)
        except CompileError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert eventually(lambda: (tmp_path / "child").exists() and bool((tmp_path / "child").read_text()))
    process.stop_running_tools()
    thread.join(20)
    assert not thread.is_alive()
    assert len(caught) == 1
    assert eventually(lambda: not alive(int((tmp_path / "child").read_text())))
    assert not process._running


def test_an_interruption_while_a_command_starts_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        shell("sleep 60", tmp_path)
    assert started[0].returncode == -signal.SIGKILL
