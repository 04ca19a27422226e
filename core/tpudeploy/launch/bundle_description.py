"""What a bundle holds, and whether it is whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.bundle import BundleFile, Manifest, Verification
from tpudeploy.launch.bundles import locate_bundle
from tpudeploy.launch.description import NetGroup, group_nets
from tpudeploy.launch.usage import check_is_no_bmodel
from tpudeploy.pack import bundle_name, open_archive
from tpudeploy.pack.archive import CopyProgress, no_copy_progress, read_files
from tpudeploy.runtime.bundle_store import open_bundle
from tpudeploy.runtime.verified_files import VerifiedFiles
from tpudeploy.settings import Settings


class BundleDescription(Value):
    """A bundle whose files are just those that its manifest names, byte for byte.

    :param path: its folder or file.
    :param name: what it is called from what it holds.
    :param model: for example ``chatglm3:6b``.
    :param compiler: what made the nets, with its version.
    :param verification: None: not verified.
    """

    path: Path
    name: str
    model: str
    quant: str
    format: str
    seq_length: int
    chips: int
    compiler: str
    tpudeploy_version: str
    checkpoint_digest: str
    verification: Verification | None
    patches: tuple[str, ...]
    nets: tuple[NetGroup, ...]
    files: tuple[BundleFile, ...]
    size_bytes: int


def describe_bundle(
    path: Path,
    settings: Settings,
    progress: CopyProgress = no_copy_progress,
    *,
    check: Callable[[Path, Manifest], None] = lambda path, manifest: None,
) -> BundleDescription:
    """Check a bundle, folder or file, and tell what is in it; nothing is unpacked.

    :param check: told the bundle's place and manifest; what it raises is raised.
    :raises BundleError: there is none, or it is damaged or hostile.
    """
    check_is_no_bmodel(path)
    path = locate_bundle(path, settings).absolute()
    if path.is_dir():
        bundle = open_bundle(path, verified=VerifiedFiles(settings.home, reread=True))
        check(path, bundle.manifest)
        return _describe(path, bundle.manifest)
    archive = open_archive(path)
    check(path, archive.manifest)
    read_files(archive, None, progress)
    return _describe(path, archive.manifest)


def _describe(path: Path, manifest: Manifest) -> BundleDescription:
    return BundleDescription(
        path=path,
        name=bundle_name(manifest),
        model=f"{manifest.model}:{manifest.variant}" if manifest.variant else manifest.model,
        quant=manifest.quant.mode.value,
        format=manifest.format.value,
        seq_length=manifest.nets.seq_length,
        chips=manifest.nets.chips,
        compiler=f"{manifest.compiler.name} {manifest.compiler.version}",
        tpudeploy_version=manifest.tpudeploy_version,
        checkpoint_digest=manifest.checkpoint_digest,
        verification=manifest.verification,
        patches=tuple(patch.name for patch in manifest.patches),
        nets=group_nets(manifest.nets),
        files=manifest.files,
        size_bytes=sum(file.size_bytes for file in manifest.files),
    )
