"""Where the private environment lies, and the marker that says that it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from tpudeploy.compile.toolchain.model import SelfCheck, Toolchain
from tpudeploy.errors import StorageError
from tpudeploy.settings import Settings

MARKER = "tpudeploy-toolchain.json"
SITE = Path("lib/python3.10/site-packages")
LOCK_TRY_S = 0.5


class Marker(BaseModel):
    """Written into the environment when all else is done; without it the environment does not count.

    :param version: TPU-MLIR's version.
    :param pins: ``pins.digest()`` of the table that it was made from.
    :param base_python: the Python 3.10 that it was made with, which must stay.
    :param size_bytes: what it takes on disk.
    """

    model_config = ConfigDict(frozen=True)

    version: str
    pins: str
    base_python: Path
    size_bytes: int
    self_check: SelfCheck


def partial_dir(settings: Settings) -> Path:
    """Downloads and the unfinished environment of an installation: beside the real one, so that rename works."""
    return settings.toolchain_dir.with_name(settings.toolchain_dir.name + ".partial")


def discarded_dirs(settings: Settings) -> list[Path]:
    """Environments that were replaced, and are not deleted yet."""
    folder = settings.toolchain_dir
    return sorted(folder.parent.glob(folder.name + ".old-*"))


def simulator_dir(settings: Settings) -> Path:
    """Copies of the simulator's libraries."""
    return settings.home / "simulator"


def read_marker(folder: Path) -> Marker | None:
    """The marker of an environment, ``None`` if it has none or an unreadable one."""
    try:
        return Marker.model_validate_json((folder / MARKER).read_bytes())
    except (OSError, ValidationError):
        return None


def write_marker(folder: Path, marker: Marker) -> None:
    """Write the marker so that it is either whole or absent, power cuts included."""
    temporary = folder / (MARKER + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(marker.model_dump_json(indent=2))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MARKER)


def private_toolchain(folder: Path, version: str) -> Toolchain:
    """The toolchain of a private environment in ``folder``."""
    return Toolchain(
        kind="private", python=folder / "bin" / "python", package_dir=folder / SITE / "tpu_mlir", version=version
    )


def delete(folder: Path) -> None:
    """Delete a folder; an absent one is no error.

    :raises StorageError: it cannot be deleted.
    """
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(
            f"cannot delete {folder}: {error.strerror or error}.", hint="Delete it by hand, and try again."
        ) from error


@contextmanager
def locked(file: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that works between processes; ``on_wait`` is called once if another one holds it.

    :raises StorageError: the folder cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=LOCK_TRY_S)
        except Timeout:
            on_wait()
            lock.acquire()
    except OSError as error:
        raise StorageError(
            f"cannot write in {file.parent}: {error.strerror or error}.",
            hint="Choose another folder with TPUDEPLOY_HOME.",
        ) from error
    try:
        yield
    finally:
        lock.release()
