"""TPU-MLIR, the vendor's compiler: install it privately, find it, call it.

tpudeploy never imports TPU-MLIR, which lives in a Python 3.10 of its own; it drives it through subprocesses.
"""

from tpudeploy.compile.toolchain.installer import install, remove
from tpudeploy.compile.toolchain.kernels import prepare_kernels
from tpudeploy.compile.toolchain.locate import find_toolchain
from tpudeploy.compile.toolchain.model import (
    InstallEvent,
    Problem,
    SelfCheck,
    Toolchain,
    ToolchainStatus,
)
from tpudeploy.compile.toolchain.report import check, status
from tpudeploy.compile.toolchain.run import run_tool, stop_running_tools
from tpudeploy.compile.toolchain.simulator import simulator_libs

__all__ = [
    "InstallEvent",
    "Problem",
    "SelfCheck",
    "Toolchain",
    "ToolchainStatus",
    "check",
    "find_toolchain",
    "install",
    "prepare_kernels",
    "remove",
    "run_tool",
    "simulator_libs",
    "status",
    "stop_running_tools",
]
