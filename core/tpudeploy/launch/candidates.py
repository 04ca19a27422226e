"""Bundles of the local store that the same name may mean: which of them are one, and what tells the others apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tpudeploy.contracts.bundle import MANIFEST_NAME, Manifest, bundle_title
from tpudeploy.errors import BundleError
from tpudeploy.pack import open_archive
from tpudeploy.runtime.bundle_store import read_manifest

_DIGEST_CHARS = 12


def distinct(paths: Sequence[Path]) -> list[Path]:
    """The first of each bundle: as a manifest holds every file's digest, equal manifests are equal bundles.

    :param paths: folders and bundle files; folders are preferred, as nothing has to be unpacked.
    """
    seen: dict[object, Path] = {}
    for path in sorted(paths, key=lambda path: not path.is_dir()):
        seen.setdefault(manifest_of(path) or path, path)
    return sorted(seen.values())


def differences(paths: Sequence[Path]) -> str:
    """What tells bundles apart, for a hint: ``a (int8, not verified), b (int8, ok on cpu)``."""
    facts = [_facts(path) for path in paths]
    told = [i for i in range(max(map(len, facts))) if len({fact[i : i + 1] for fact in facts}) > 1]
    return "; ".join(
        f"{path.name} ({', '.join(fact[i] for i in told if i < len(fact)) or 'other files'})"
        for path, fact in zip(paths, facts, strict=True)
    )


def manifest_of(path: Path) -> bytes | None:
    """The manifest of a folder or file as it is written; None: it cannot be read, which is told when it is opened."""
    try:
        return (path / MANIFEST_NAME).read_bytes() if path.is_dir() else open_archive(path).manifest_bytes
    except (OSError, BundleError):
        return None


def _facts(path: Path) -> tuple[str, ...]:
    try:
        manifest: Manifest = read_manifest(path) if path.is_dir() else open_archive(path).manifest
    except (OSError, BundleError):
        return ("damaged",)
    model = f"{manifest.model}:{manifest.variant or 'custom'}"
    stages = ", ".join(sorted({str(net.stage) for net in manifest.nets.nets}))
    verification = manifest.verification
    return (
        bundle_title(model, manifest.quant.mode, manifest.nets, manifest.format),
        f"passes {stages}",
        f"verified: {verification.outcome.value}" if verification else "not verified",
        f"made by tpudeploy {manifest.tpudeploy_version}, {manifest.compiler.name} {manifest.compiler.version}",
        f"patches {', '.join(patch.name for patch in manifest.patches) or 'none'}",
        f"checkpoint {manifest.checkpoint_digest[:_DIGEST_CHARS]}",
    )
