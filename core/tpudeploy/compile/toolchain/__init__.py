"""TPU-MLIR, the vendor's compiler: install it privately, find it, call it.

tpudeploy never imports TPU-MLIR, which lives in a Python 3.10 of its own; it drives it through subprocesses.
"""

from tpudeploy.compile.toolchain.install import install, remove
from tpudeploy.compile.toolchain.locate import find_toolchain
from tpudeploy.compile.toolchain.model import (
    InstallEvent,
    Problem,
    SelfCheck,
    Toolchain,
    ToolchainStatus,
)
from tpudeploy.compile.toolchain.run import run_tool
from tpudeploy.compile.toolchain.simulator import simulator_libs
from tpudeploy.compile.toolchain.status import check, status

__all__ = [
    "InstallEvent",
    "Problem",
    "SelfCheck",
    "Toolchain",
    "ToolchainStatus",
    "check",
    "find_toolchain",
    "install",
    "remove",
    "run_tool",
    "simulator_libs",
    "status",
]
