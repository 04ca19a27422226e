"""Bundle files into the local store: once, under a name by their digest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tpudeploy.compile.store import (
    StageStore,
    free_bytes,
    replace_folder,
    storage_errors,
    sweep,
    sweep_abandoned,
    unique_work_folder,
)
from tpudeploy.contracts.bundle import MANIFEST_NAME
from tpudeploy.errors import BundleError, StorageError
from tpudeploy.pack.archive import BundleArchive, CopyProgress, no_copy_progress, open_archive, read_files
from tpudeploy.pack.naming import bundle_name
from tpudeploy.runtime.verified_files import VerifiedFiles
from tpudeploy.settings import Settings

SPARE_BYTES = 64 << 20
"""Left free on the disk beyond the files."""
_DIGEST_CHARS = 10


def unpacked_folder(archive: BundleArchive, settings: Settings) -> Path:
    """Where a bundle file's contents belong in the local store: where the same bundle was compiled, if it was here."""
    final = settings.bundles_dir / f"{bundle_name(archive.manifest)}-{archive.digest[:_DIGEST_CHARS]}"
    if final.exists():
        return final
    return next((folder for folder in _folders(settings) if _holds(folder, archive)), final)


def _folders(settings: Settings) -> list[Path]:
    found = sorted(path.parent for path in settings.bundles_dir.glob(f"*/{MANIFEST_NAME}"))
    return [folder for folder in found if not folder.name.startswith(".")]


def _holds(folder: Path, archive: BundleArchive) -> bool:
    """Whether a folder has the same manifest, which holds the digest of every file."""
    try:
        manifest = folder / MANIFEST_NAME
        same_size = manifest.stat().st_size == len(archive.manifest_bytes)
        return same_size and manifest.read_bytes() == archive.manifest_bytes
    except OSError:
        return False


def unpack(
    path: Path,
    settings: Settings,
    *,
    force: bool = False,
    waiting: Callable[[str], None] = lambda text: None,
    progress: CopyProgress = no_copy_progress,
) -> Path:
    """The folder of a bundle file's contents in the local store; unpacked where it is not there yet.

    What is written is checked as it is read, and recorded as verified: nobody has to read it again for that. A folder
    that is there has the file's own manifest; its files are checked by whoever opens it. Interrupted, nothing
    is left that looks like a bundle.

    :param force: unpack again even if it is there.
    :param waiting: called once with a text when another process is unpacking the same.
    :raises BundleError: no bundle, or one that is damaged or hostile; nothing is written outside of the store.
    :raises StorageError: no room for it, or the store cannot be written.
    """
    archive = open_archive(path)
    final = unpacked_folder(archive, settings)
    if not force and _is_unpacked(archive, final):
        return final
    sweep_abandoned(settings.bundles_dir)
    locks = StageStore(settings.stages_dir, waiting=waiting)
    with storage_errors(settings.home), locks.lock(f"bundle-{archive.digest}", what=path.name):
        if force or not _is_unpacked(archive, final):
            _unpack(archive, final, progress)
            VerifiedFiles(settings.home).trust(final.resolve(), archive.manifest.files)
    return final


def _is_unpacked(archive: BundleArchive, final: Path) -> bool:
    if not final.exists():
        return False
    manifest = final / MANIFEST_NAME
    if not manifest.is_file() or manifest.read_bytes() != archive.manifest_bytes:
        raise BundleError(
            f"{final} does not hold what {archive.path} was unpacked to.", hint="Unpack it again: add --force."
        )
    return True


def _unpack(archive: BundleArchive, final: Path, progress: CopyProgress) -> None:
    needed, free = archive.files_bytes + len(archive.manifest_bytes), free_bytes(final.parent)
    if needed + SPARE_BYTES > free:
        raise StorageError(
            f"unpacking {archive.path} takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free in {final.parent}.",
            hint="Free some room, set TPUDEPLOY_HOME to a larger disk, or run a bundle folder.",
        )
    sweep(final)
    work = unique_work_folder(final)
    try:
        read_files(archive, work, progress)
        replace_folder(work, final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
