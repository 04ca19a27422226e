"""Bundles on disk: opening one checks every file against the manifest; writing one ends with the manifest."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from tpudeploy.contracts.bundle import FORMAT_VERSION, MANIFEST_NAME, BundleFile, Manifest
from tpudeploy.errors import BundleError, StorageError
from tpudeploy.runtime.manifest_limits import MANIFEST_LIMIT_BYTES, find_absurdity
from tpudeploy.runtime.verified_files import FileSight, VerifiedFiles, is_settled, look_at

_BLOCK_BYTES = 1 << 20
_LONGEST_PLACE = 200
_AGAIN = "Copy, compile or unpack the bundle again; the same command with --force replaces the one in the local store."


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


def open_bundle(folder: Path, *, contents: bool = True, verified: VerifiedFiles | None = None) -> Bundle:
    """Read a bundle's manifest and check every file's size and SHA-256.

    :param contents: False leaves out the SHA-256, for whoever reads the files right afterwards and checks them then.
    :param verified: files that it knows, and that look as they did, are not read again; what is read and right, it
        will know. None reads all.
    :raises BundleError: no bundle, a newer format, or a file that is missing, not listed, a link or not as written.
    """
    if not folder.is_dir():
        raise BundleError(f"there is no bundle folder {folder}.", hint="`tpudeploy list-models` names those there are.")
    folder = folder.resolve()
    manifest = read_manifest(folder)
    check_names(folder, manifest)
    listed = {file.path: file for file in manifest.files}
    present = set(_walk(folder))
    for path in sorted(set(listed) - present):
        raise BundleError(f"the bundle {folder} lacks the file {path}.", hint=_AGAIN)
    for path in sorted(present - set(listed)):
        raise BundleError(
            f"the bundle {folder} holds {path}, which its manifest does not list.", hint="Move that file elsewhere."
        )
    _check_files(folder, manifest, verified, contents=contents)
    return Bundle(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest without looking at the other files.

    :raises BundleError: missing, unreadable, or of a format version that this tpudeploy does not know.
    """
    path = folder / MANIFEST_NAME
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{folder} is no bundle: it has no {MANIFEST_NAME}.", hint="Name the folder that holds it.")
    try:
        with path.open("rb") as stream:
            data = stream.read(MANIFEST_LIMIT_BYTES + 1)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}.") from error
    return parse_manifest(data, path)


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """The manifest that is written in ``data``.

    :param path: where it was read, for errors.
    :raises BundleError: no manifest, of an unknown format version, or larger than any real one.
    """
    if len(data) > MANIFEST_LIMIT_BYTES:
        raise BundleError(f"{path} has over {MANIFEST_LIMIT_BYTES >> 20} MiB, more than any manifest.", hint=_AGAIN)
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}.", hint=_AGAIN) from error
    _check_version(path, content)
    try:
        manifest = Manifest.model_validate(content)
    except (ValidationError, RecursionError) as error:
        raise BundleError(f"{path} is not a valid manifest: {_explain(error)}.", hint=_AGAIN) from error
    if absurdity := find_absurdity(manifest):
        raise BundleError(f"{path} is not a valid manifest: {absurdity}.", hint=_AGAIN)
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as it is written."""
    return (manifest.model_dump_json(indent=1) + "\n").encode()


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write the manifest, as the last step of making a bundle: it appears whole or not at all.

    :raises StorageError: the folder cannot be written to.
    """
    path = folder / MANIFEST_NAME
    partial = folder / f".{MANIFEST_NAME}.{os.getpid()}"
    try:
        with partial.open("wb") as stream:
            stream.write(encode_manifest(manifest))
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


def _explain(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])[:_LONGEST_PLACE]  # may be a name that the file chose
    return "".join(c if c.isprintable() else "?" for c in f"{place}: {first['msg']}")


def _check_version(path: Path, content: Any) -> None:
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{path} does not say its format version.", hint=_AGAIN)
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{path} has format version {version}, this tpudeploy knows up to {FORMAT_VERSION}.",
            hint="Update tpudeploy, or compile the bundle with this version.",
        )


def check_names(folder: Path, manifest: Manifest) -> None:
    """The manifest must agree with itself before files are looked at.

    :param folder: what it is the manifest of, for errors.
    :raises BundleError: a file is listed twice or below another, or a net or tokenizer has no file.
    """
    paths = {file.path for file in manifest.files}
    counts = Counter(file.path for file in manifest.files)
    for path, count in counts.items():
        below = any(parent.as_posix() in paths for parent in PurePosixPath(path).parents)
        if count > 1 or below or path == MANIFEST_NAME or path.startswith(f"{MANIFEST_NAME}/"):
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


def _check_files(folder: Path, manifest: Manifest, verified: VerifiedFiles | None, *, contents: bool) -> None:
    known = verified.known(folder) if verified is not None else {}
    fresh: dict[str, FileSight] = {}
    for file in manifest.files:
        sight = _check_size(folder, file)
        if not contents or known.get(file.path) == sight:
            continue
        path, settled = folder / file.path, is_settled(sight)
        if _digest(path)[1] != file.sha256:
            if verified is not None:
                verified.forget(folder)
            raise BundleError(f"{path} is corrupt: its SHA-256 is not the manifest's.", hint=_AGAIN)
        if settled and look_at(path, file.sha256) == sight:  # else it was changed while it was read
            fresh[file.path] = sight
    if verified is not None and fresh:
        verified.remember(folder, fresh)


def _check_size(folder: Path, file: BundleFile) -> FileSight:
    path = folder / file.path
    sight = look_at(path, file.sha256)
    if sight.size_bytes != file.size_bytes:
        raise BundleError(f"{path} has {sight.size_bytes} bytes, its manifest says {file.size_bytes}.", hint=_AGAIN)
    return sight


def _digest(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 (hex), read block by block into one buffer."""
    digest, size = hashlib.sha256(), 0
    block = memoryview(bytearray(_BLOCK_BYTES))
    try:
        with path.open("rb", buffering=0) as stream:
            while count := stream.readinto(block):
                digest.update(block[:count])
                size += count
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}.") from error
    return size, digest.hexdigest()
