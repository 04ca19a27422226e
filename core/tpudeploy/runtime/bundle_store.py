"""Bundles on disk: opening one checks every file against the manifest; writing one ends with the manifest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tpudeploy.contracts.bundle import FORMAT_VERSION, MANIFEST_NAME, BundleFile, Manifest
from tpudeploy.errors import BundleError, StorageError

_BLOCK_BYTES = 1 << 20
_AGAIN = "Copy the bundle again, or delete its folder and compile it again."


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are just those that its manifest names, byte for byte.

    :param folder: absolute, links resolved.
    """

    folder: Path
    manifest: Manifest

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's files lie, where the bundle ships any."""
        return self.folder / "tokenizer"


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest and check every file's size and SHA-256.

    :raises BundleError: no bundle, a newer format, or a file that is missing, not listed, a link or not as written.
    """
    if not folder.is_dir():
        raise BundleError(f"there is no bundle folder {folder}.", hint="`tpudeploy list-models` names those there are.")
    folder = folder.resolve()
    manifest = read_manifest(folder)
    _check_names(folder, manifest)
    listed = {file.path: file for file in manifest.files}
    present = set(_walk(folder))
    for path in sorted(set(listed) - present):
        raise BundleError(f"the bundle {folder} lacks the file {path}.", hint=_AGAIN)
    for path in sorted(present - set(listed)):
        raise BundleError(
            f"the bundle {folder} holds {path}, which its manifest does not list.", hint="Move that file elsewhere."
        )
    for file in manifest.files:
        _check_file(folder, file)
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest without looking at the other files.

    :raises BundleError: missing, unreadable, or of a format version that this tpudeploy does not know.
    """
    path = folder / MANIFEST_NAME
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{folder} is no bundle: it has no {MANIFEST_NAME}.", hint="Name the folder that holds it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}.", hint=_AGAIN) from error
    _check_version(path, content)
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path} is not a valid manifest: {place}: {first['msg']}.", hint=_AGAIN) from error


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write the manifest, as the last step of making a bundle: it appears whole or not at all.

    :raises StorageError: the folder cannot be written to.
    """
    path = folder / MANIFEST_NAME
    partial = folder / f".{MANIFEST_NAME}.{os.getpid()}"
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(manifest.model_dump_json(indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}.", hint="Check space and permissions.") from error
    return path


def describe_file(folder: Path, path: str) -> BundleFile:
    """Size and digest of one file of a bundle that is being made.

    :param path: relative to ``folder``, with ``/``.
    :raises BundleError: the file cannot be read.
    """
    size, digest = _digest(folder / path)
    return BundleFile(path=path, size_bytes=size, sha256=digest)


def _check_version(path: Path, content: Any) -> None:
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{path} does not say its format version.", hint=_AGAIN)
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{path} has format version {version}, this tpudeploy knows up to {FORMAT_VERSION}.",
            hint="Update tpudeploy, or compile the bundle with this version.",
        )


def _check_names(folder: Path, manifest: Manifest) -> None:
    """The manifest must agree with itself before files are looked at."""
    paths = [file.path for file in manifest.files]
    for path in paths:
        if paths.count(path) > 1 or path == MANIFEST_NAME:
            raise BundleError(f"the manifest of {folder} must not list {path} as it does.", hint=_AGAIN)
    for net in manifest.nets.nets:
        if manifest.net_files.get(net.name) not in paths:
            raise BundleError(f"the manifest of {folder} names no file for the net {net.name}.", hint=_AGAIN)
    for path in manifest.tokenizer_files:
        if path not in paths:
            raise BundleError(f"the manifest of {folder} does not list its tokenizer file {path}.", hint=_AGAIN)


def _walk(folder: Path) -> Iterator[str]:
    """Paths of all files but the manifest; a link or a special file is refused, never followed."""

    def refuse(error: OSError) -> None:
        raise BundleError(f"cannot read {error.filename}: {error.strerror}.") from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        for name in (*folders, *files):
            path = Path(parent) / name
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise BundleError(
                    f"the bundle {folder} holds {path.relative_to(folder).as_posix()}, which is a link or no file.",
                    hint="Copy the bundle with its links resolved (cp -rL).",
                )
        for name in files:
            relative = (Path(parent) / name).relative_to(folder).as_posix()
            if relative != MANIFEST_NAME:
                yield relative


def _check_file(folder: Path, file: BundleFile) -> None:
    path = folder / file.path
    size = path.stat().st_size
    if size != file.size_bytes:
        raise BundleError(f"{path} has {size} bytes, its manifest says {file.size_bytes}.", hint=_AGAIN)
    if _digest(path)[1] != file.sha256:
        raise BundleError(f"{path} is corrupt: its SHA-256 is not the manifest's.", hint=_AGAIN)


def _digest(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 (hex), read block by block."""
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}.") from error
    return size, digest.hexdigest()
