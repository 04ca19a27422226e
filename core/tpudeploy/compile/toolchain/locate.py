"""Find the TPU-MLIR to use: one the user names, the private one, or one on PATH."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from tpudeploy.compile.toolchain.layout import private_toolchain, read_marker
from tpudeploy.compile.toolchain.model import Toolchain
from tpudeploy.compile.toolchain.python310 import candidates, why_not
from tpudeploy.errors import ToolchainError
from tpudeploy.settings import Settings

INSTALL = "Run `tpudeploy toolchain install`"
INSTALL_ANEW = "Run `tpudeploy toolchain install --force`"
VERSION = re.compile(r"(?:^|[-_v])(\d+\.\d+(?:\.\d+)*)")
# What must be there for a folder to be a TPU-MLIR: the compiler and the front end.
ESSENTIAL = ("bin/tpuc-opt", "bin/model_tool", "python/tools/model_transform.py", "python/tools/model_deploy.py")


def find_toolchain(settings: Settings) -> Toolchain:
    """The TPU-MLIR to use.

    ``settings.toolchain`` wins, then the private one, then one on PATH (as in the vendor's container).

    :raises ToolchainError: there is none, or the named one is not usable; says how to get one.
    """
    if settings.toolchain:
        return from_folder(settings.toolchain)
    marker = read_marker(settings.toolchain_dir)
    if marker:
        return private_toolchain(settings.toolchain_dir, marker.version)
    found = from_path(os.environ.get("PATH", ""))
    if found:
        return found
    raise ToolchainError(
        "TPU-MLIR, the compiler for the TPU, is not installed.",
        hint=f"{INSTALL}, or name an existing one with TPUDEPLOY_TOOLCHAIN.",
    )


def from_folder(folder: Path) -> Toolchain:
    """The TPU-MLIR in a folder: a ``tpu_mlir`` package, an unpacked release, or an environment that has it.

    :raises ToolchainError: the folder holds none, or there is no Python 3.10 for it.
    """
    for package_dir in _package_dirs(folder):
        if all((package_dir / name).exists() for name in ESSENTIAL):
            return _existing("folder", package_dir.resolve())
    raise ToolchainError(
        f"{folder} (TPUDEPLOY_TOOLCHAIN) holds no TPU-MLIR: no {ESSENTIAL[0]} beside {ESSENTIAL[2]}.",
        hint="Name the folder of an unpacked release or of an environment with tpu_mlir, or unset it. "
        f"{INSTALL} for one that tpudeploy looks after.",
    )


def from_path(path: str) -> Toolchain | None:
    """The TPU-MLIR whose tools are on PATH, or ``None``."""
    for name in ("tpuc-opt", "model_transform.py"):
        tool = shutil.which(name, path=path)
        if not tool:
            continue
        # bin/tpuc-opt or python/tools/model_transform.py of a release, or a script in an environment's bin.
        for folder in Path(tool).resolve().parents[1:3]:
            for package_dir in _package_dirs(folder):
                if all((package_dir / part).exists() for part in ESSENTIAL):
                    return _existing("path", package_dir.resolve())
    return None


def _package_dirs(folder: Path) -> Iterator[Path]:
    """Where below a named folder the package may be."""
    yield folder
    yield folder / "tpu_mlir"
    yield from sorted(folder.glob("lib/python3.10/*-packages/tpu_mlir"))


def _existing(kind: str, package_dir: Path) -> Toolchain:
    return Toolchain.model_validate(
        {
            "kind": kind,
            "python": _python_for(package_dir),
            "package_dir": package_dir,
            "version": version_of(package_dir),
        }
    )


@lru_cache
def _python_for(package_dir: Path) -> Path:
    """The Python 3.10 of the environment that the package lies in, else any that runs.

    :raises ToolchainError: none runs.
    """
    own = [root / "bin" / "python3.10" for root in package_dir.parents[:4]]
    tried = []
    for python in [*own, *candidates(os.environ)]:
        if python.is_file():
            reason = why_not(python)
            if reason is None:
                return python
            tried.append(f"{python}: {reason}")
    raise ToolchainError(
        f"the TPU-MLIR in {package_dir} needs Python 3.10, and none was found ({'; '.join(tried) or 'none tried'}).",
        hint=f"{INSTALL}, which makes an environment with all that is needed.",
    )


def version_of(package_dir: Path) -> str:
    """The version, from the package's metadata or the release folder's name; else one made from the compiler file."""
    metadata = sorted(package_dir.parent.glob("tpu_mlir-*.dist-info"))
    for name in [*(m.name for m in metadata), package_dir.name]:
        match = VERSION.search(name)
        if match:
            return match[1]
    info = (package_dir / "bin" / "tpuc-opt").stat()
    return f"unknown-{info.st_size}-{info.st_mtime_ns}"
