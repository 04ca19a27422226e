"""The simulator's libraries in a folder of their own, for loading into any Python."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from tpudeploy.compile.toolchain import layout
from tpudeploy.compile.toolchain.model import Toolchain
from tpudeploy.errors import StorageError, ToolchainError
from tpudeploy.settings import Settings

# Name in the folder -> files of the toolchain, the first that exists. The libraries ask for each other by these
# names; libcpuop has the layers that a net runs on the host.
LIBRARIES = {
    "libbmrt.so.1.0": ("libbmrt.so.1.0", "libbmrt.so"),
    "libbmlib.so.0": ("libbmlib_bm1684x.so.0", "libbmlib.so.0"),
    "libcmodel_bm1684x.so": ("libcmodel_bm1684x.so",),
    "libcpuop.so": ("libcpuop.so",),
    "libcpuop.so.1.0.0": ("libcpuop.so.1.0.0",),
}
OPTIONAL = ("libcpuop.so", "libcpuop.so.1.0.0")
# The same file under a second name.
ALIASES = {"libcmodel.so": "libcmodel_bm1684x.so"}


def simulator_libs(toolchain: Toolchain, settings: Settings) -> Path:
    """A folder with the simulator's runtime, and nothing of the C library that a published TPU-MLIR has beside it.

    It is made at the first call and kept, per toolchain; any number of processes may ask at once.

    :raises ToolchainError: the toolchain lacks one of the libraries.
    :raises StorageError: the disk is full or the folder cannot be written.
    """
    key = re.sub(r"[^\w.-]", "_", f"{toolchain.version}-{toolchain.kind}")
    target = layout.simulator_dir(settings) / key
    sources = _sources(toolchain.package_dir / "lib")
    if _current(target, sources):
        return target
    with layout.locked(target.with_name(key + ".lock"), lambda: None):
        if not _current(target, sources):
            _make(target, sources, share=toolchain.kind == "private")
    return target


def _sources(lib: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, alternatives in LIBRARIES.items():
        source = next((lib / a for a in alternatives if (lib / a).exists()), None)
        if source:
            found[name] = source
        elif name not in OPTIONAL:
            raise ToolchainError(
                f"the TPU-MLIR in {lib.parent} has no simulator: {name} is missing.",
                hint="Run `tpudeploy toolchain install`, and unset TPUDEPLOY_TOOLCHAIN.",
            )
    return found


def _current(target: Path, sources: dict[str, Path]) -> bool:
    """Whether the folder holds these very files (a folder is whole from the moment it has its name)."""
    for name, source in sources.items():
        try:
            there, wanted = (target / name).stat(), source.stat()
        except FileNotFoundError:
            return False
        if (there.st_size, there.st_mtime_ns) != (wanted.st_size, wanted.st_mtime_ns):
            return False
    return True


def _make(target: Path, sources: dict[str, Path], *, share: bool) -> None:
    temporary = target.with_name(target.name + ".tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, source in sources.items():
            _place(source.resolve(), temporary / name, share=share)
        for alias, name in ALIASES.items():
            _place(temporary / name, temporary / alias, share=True)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    except OSError as error:
        raise StorageError(
            f"cannot put the simulator's libraries into {target}: {error.strerror or error}.",
            hint="Free some space, or choose another folder with TPUDEPLOY_HOME.",
        ) from error


def _place(source: Path, target: Path, *, share: bool) -> None:
    """A hard link where that is safe (the private environment's files are never written again), else a copy."""
    if share:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another disk, or one that has no hard links
    shutil.copy2(source, target)
