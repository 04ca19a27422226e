"""Whether this machine can run TPU-MLIR at all, and has the disk space for it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tpudeploy.compile.toolchain import pins
from tpudeploy.errors import StorageError, ToolchainError

ELSEWHERE = "Compile on another machine, or in the vendor's container; a finished bundle runs on any."
MARGIN_BYTES = 64 << 20  # compiled Python files, the self-check


def check_host() -> None:
    """Refuse what TPU-MLIR is not built for.

    :raises ToolchainError: not Linux on x86-64, or a C library that is too old or not glibc.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise ToolchainError(
            f"TPU-MLIR is published for Linux on x86-64 only, and this is {sys.platform} on {platform.machine()}.",
            hint=ELSEWHERE,
        )
    have, need = glibc_version(), ".".join(map(str, pins.GLIBC_NEEDED))
    if not have:
        raise ToolchainError(
            f"TPU-MLIR needs glibc {need} or later; this system has another C library.", hint=ELSEWHERE
        )
    if have < pins.GLIBC_NEEDED:
        text = ".".join(map(str, have))
        raise ToolchainError(
            f"TPU-MLIR needs glibc {need} or later (Ubuntu 22.04, Debian 12, RHEL 9); this system has {text}.",
            hint=ELSEWHERE,
        )


def glibc_version() -> tuple[int, ...]:
    """The C library's version, empty if it is not glibc."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):
        return ()
    return tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else ()


def bytes_needed(present: set[str]) -> int:
    """Disk space that an installation still takes, at its worst moment.

    :param present: projects whose wheels are there already.

    pip holds a wheel twice for a moment (the largest comes first, so before the others); later the wheels lie
    beside what is unpacked from them.
    """
    missing = [pin.size_bytes for pin in pins.PINS if pin.project not in present]
    unpacked = sum(pin.kept_bytes for pin in pins.PINS)
    return max(2 * max(missing, default=0), sum(missing) + unpacked) + MARGIN_BYTES


def free_bytes(folder: Path) -> int:
    """Free space on the disk of ``folder``, or of its nearest ancestor that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_disk(folder: Path, needed_bytes: int, free: Callable[[Path], int] = free_bytes) -> None:
    """Refuse to start what would not fit.

    :raises StorageError: says how much is needed, how much there is, and where.
    """
    have = free(folder)
    if have < needed_bytes:
        raise StorageError(
            f"installing TPU-MLIR needs {megabytes(needed_bytes)} in {folder}, where {megabytes(have)} are free.",
            hint="Free some space there, or choose another disk with TPUDEPLOY_HOME.",
        )


def megabytes(count: int) -> str:
    """A size for people."""
    return f"{count / 1e6:,.0f} MB"
