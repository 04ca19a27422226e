"""Check a toolchain by using it: compile a tiny net and compare what the simulator computes. Takes seconds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from tpudeploy.compile.toolchain.kernels import prepare_kernels
from tpudeploy.compile.toolchain.model import SelfCheck, Toolchain
from tpudeploy.compile.toolchain.run import run_logged, run_tool
from tpudeploy.errors import TpuDeployError

TINY_NET = Path(__file__).parent / "inside" / "tinynet.py"
TIMEOUT_S = 300.0


def self_check(
    toolchain: Toolchain, work: Path, log: Path, progress: Callable[[str], None] = lambda _: None
) -> SelfCheck:
    """Compile and simulate the tiny net.

    :param work: a folder for its files; emptied before, removed after.
    :param log: gets all output.
    :param progress: told what is being done, one line each.
    :returns: the result; a failure is a result too, not an exception.
    """
    started, when = time.monotonic(), datetime.now(timezone.utc)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        _run(toolchain, work, log, progress)
    except TpuDeployError as error:
        return SelfCheck(passed=False, when=when, seconds=time.monotonic() - started, detail=str(error))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    detail = "attention, F16, on the simulator: numbers as expected"
    return SelfCheck(passed=True, when=when, seconds=time.monotonic() - started, detail=detail)


def _run(toolchain: Toolchain, work: Path, log: Path, progress: Callable[[str], None]) -> None:
    def script(action: str) -> None:
        command = [*toolchain.python_command(), str(TINY_NET), action, str(work)]
        run_logged(command, cwd=work, log=log, env=toolchain.environment(), timeout_s=TIMEOUT_S)

    def tool(name: str, *args: str) -> None:
        progress(f"running {name} on a tiny net")
        run_tool(toolchain, name, args, cwd=work, log=log, timeout_s=TIMEOUT_S)

    prepare_kernels(toolchain)
    script("make")
    tool("model_transform", "--model_name", "tiny", "--model_def", "tiny.onnx", "--mlir", "tiny.mlir")
    tool(
        *("model_deploy", "--mlir", "tiny.mlir", "--quantize", "F16", "--chip", "bm1684x"),
        *("--model", "tiny.bmodel"),
    )
    tool("model_tool", "--info", "tiny.bmodel")
    tool("model_runner", "--input", "in.npz", "--model", "tiny.bmodel", "--output", "out.npz")
    script("check")
