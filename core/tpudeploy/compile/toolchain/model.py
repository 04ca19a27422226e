"""What a toolchain is: a Python 3.10, a ``tpu_mlir`` folder, and how to call its tools."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tpudeploy.errors import UnknownNameError

Kind = Literal["private", "folder", "path"]
Step = Literal["wait", "python", "download", "unpack", "self-check", "done"]

LAUNCHER = Path(__file__).parent / "inside" / "launcher.py"
PYTHON_TOOLS = ("model_transform", "model_deploy", "model_runner")
BINARY_TOOLS = ("model_tool", "tpuc-opt")
TOOLS = (*PYTHON_TOOLS, *BINARY_TOOLS)


@dataclass(frozen=True)
class InstallEvent:
    """Progress of an installation.

    :param step: what is being done.
    :param message: the same for people, one line.
    :param done_bytes: how much of this step is done; 0 for steps that are not measured in bytes.
    :param total_bytes: how much there is to do, or 0.
    """

    step: Step
    message: str
    done_bytes: int = 0
    total_bytes: int = 0


class Toolchain(BaseModel):
    """A TPU-MLIR that can be called.

    :param kind: ``private`` was made by ``tpudeploy toolchain install``; ``folder`` was named by the user;
        ``path`` was found through PATH.
    :param python: a Python 3.10 that has the packages that TPU-MLIR's Python tools use.
    :param package_dir: the ``tpu_mlir`` folder: ``bin``, ``lib`` and ``python`` are below it.
    :param version: TPU-MLIR's version, or ``unknown-`` and a number that stands for this very build.
    """

    model_config = ConfigDict(frozen=True)

    kind: Kind
    python: Path
    package_dir: Path
    version: str

    @property
    def kernel_cache(self) -> Path | None:
        """Where attention kernels are kept: in the private environment, or wherever a TPU-MLIR of the user's does."""
        return self.python.parent.parent / "kernels" if self.kind == "private" else None

    def command(self, tool: str, *args: str | Path) -> list[str]:
        """The command line of one vendor call; run it with ``environment()``.

        The vendor's tools paste file names into shell commands: name files relative to the working folder.

        :param tool: one of ``TOOLS``.
        :raises UnknownNameError: no such tool.
        """
        arguments = [str(a) for a in args]
        if tool in BINARY_TOOLS:
            return [str(self.package_dir / "bin" / tool), *arguments]
        if tool not in PYTHON_TOOLS:
            raise UnknownNameError("TPU-MLIR tool", tool, TOOLS)
        return [*self.python_command(), str(LAUNCHER), str(self.package_dir), tool, *arguments]

    def python_command(self) -> list[str]:
        """The interpreter; a private one is deaf to PYTHONPATH, user site packages and the like."""
        return [str(self.python), *(["-I"] if self.kind == "private" else [])]

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of a vendor call.

        :param base: what to add to; this process's environment by default.
        """
        env = dict(os.environ if base is None else base)
        root = self.package_dir
        # Attention kernels are built while compiling, by ppl_jit.sh, which is found through PATH: see kernels.py.
        # tpuc-opt crashes without the variable; the vendor's container sets it to a folder elsewhere.
        ppl = root / "cross_toolchains" / "ppl_compile"
        if ppl.is_dir() or "PPL_PROJECT_ROOT" not in env:
            env.update(PPL_PROJECT_ROOT=str(ppl), PPL_RUNTIME_PATH=str(ppl / "deps"))
        env.pop("PYTHONHOME", None)
        env.update(
            TPUC_ROOT=str(root),
            PATH=_prepend([root / "bin", ppl / "bin"], env.get("PATH", "")),
            LD_LIBRARY_PATH=_prepend(_library_dirs(root), env.get("LD_LIBRARY_PATH", "")),
        )
        if self.kernel_cache is not None:
            env["PPL_CACHE_PATH"] = str(self.kernel_cache)
        env.setdefault("OMP_NUM_THREADS", "4")  # the vendor's default
        # The tools allocate and free weights as a whole: with huge pages a fifth of their CPU time less.
        env.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
        return env


def _prepend(folders: list[Path], value: str) -> str:
    return os.pathsep.join([*map(str, folders), *([value] if value else [])])


def _library_dirs(package_dir: Path) -> list[Path]:
    """Where the vendor's programs look for libraries before ``lib/third_party``, which their RUNPATH names.

    A published TPU-MLIR has Ubuntu's C library in that folder, which crashes on any other system: the system's
    own folder then goes first. (The private environment does not have it.)
    """
    lib = package_dir / "lib"
    if (lib / "use-spare").exists():
        return [lib, lib / "spare"]
    if (lib / "third_party" / "libc.so.6").exists():
        return [lib, *_system_library_dirs()]
    return [lib]


def _system_library_dirs() -> list[Path]:
    """The folder of the C library that this process runs with, if the kernel tells."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    files = (Path(line.split(maxsplit=5)[-1]) for line in lines if "/libc.so.6" in line or "/libc-2." in line)
    return list(dict.fromkeys(file.parent for file in files))


class SelfCheck(BaseModel):
    """The result of compiling a tiny net and running it on the simulator.

    :param passed: whether the simulator's numbers were the expected ones.
    :param when: when it ran.
    :param seconds: how long it took.
    :param detail: what was compared, or what went wrong.
    """

    model_config = ConfigDict(frozen=True)

    passed: bool
    when: datetime
    seconds: float
    detail: str


class Problem(BaseModel):
    """Something that is wrong, and what to do about it."""

    model_config = ConfigDict(frozen=True)

    text: str
    remedy: str


class ToolchainStatus(BaseModel):
    """What ``tpudeploy toolchain status`` tells; JSON-able.

    :param found: whether there is a TPU-MLIR to use.
    :param folder: the environment (private), or the ``tpu_mlir`` folder.
    :param size_bytes: disk space of what tpudeploy installed; 0 for a TPU-MLIR of the user's.
    :param self_check: the last one, ``None`` if there was none.
    :param problems: empty when all is well.
    """

    model_config = ConfigDict(frozen=True)

    found: bool
    kind: Kind | None = None
    version: str | None = None
    python: Path | None = None
    folder: Path | None = None
    size_bytes: int = 0
    self_check: SelfCheck | None = None
    problems: list[Problem] = []
