"""Which files of bundles were read in full and found right, so that a later start needs no more than to look at them.

A file counts as the one that was read as long as its size, times and inode are the same. That guards against
accidents: a copy that was cut short, a file that was replaced or written to. It is no guard against somebody who
wants to deceive, and who could as well write another digest into the manifest. A disk that returns other bytes
without being told to write is found by reading again (``--verify-files``).

Records lie in the home, one file a bundle. Whatever is wrong with one, or with writing it, costs a reading.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.bundle import MANIFEST_NAME, BundleFile

_FOLDER = "verified"
_NAME_CHARS = 32
_LARGEST_BYTES = 16 << 20
_TICK_NS = 20_000_000
"""Linux stamps files with a clock that moves in steps of 1 to 10 ms."""
_COARSE_TICK_NS = 2_000_000_000
"""FAT and some network disks count in seconds, or two."""


class FileSight(Value):
    """What a file looks like without being read.

    :param sha256: the digest (hex) of what it held when it looked so.
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    sha256: str


class _Record(Value):
    version: Literal[1] = 1
    folder: str
    files: dict[str, FileSight]


def look_at(path: Path, sha256: str) -> FileSight:
    """What a file looks like now. :raises OSError: it cannot be looked at."""
    stat = path.stat()
    return FileSight(
        size_bytes=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        ctime_ns=stat.st_ctime_ns,
        inode=stat.st_ino,
        sha256=sha256,
    )


def is_settled(sight: FileSight) -> bool:
    """Whether any change from now on would show: right after a change, a second one may leave the same times."""
    whole_seconds = sight.ctime_ns % 1_000_000_000 == 0 and sight.mtime_ns % 1_000_000_000 == 0
    return abs(time.time_ns() - sight.ctime_ns) >= (_COARSE_TICK_NS if whole_seconds else _TICK_NS)


class VerifiedFiles:
    """The records of one home.

    :param reread: take nothing for known, so that every file is read and recorded anew.
    """

    def __init__(self, home: Path, *, reread: bool = False) -> None:
        self._root = home / _FOLDER
        self._reread = reread

    def known(self, folder: Path) -> Mapping[str, FileSight]:
        """What the files of a bundle looked like when they were last found right, by their paths in it.

        :param folder: absolute, links resolved.
        """
        return {} if self._reread else self._read(folder)

    def remember(self, folder: Path, files: Mapping[str, FileSight]) -> None:
        """Note files that were read and found right; those that were noted before stay so."""
        new = not self._path(folder).exists()
        record = _Record(folder=str(folder), files={**self._read(folder), **files})
        with suppress(OSError):  # a home that is full or not to be written: the next start reads again
            self._root.mkdir(parents=True, exist_ok=True)
            self._write(self._path(folder), record.model_dump_json().encode())
            if new:
                self._sweep()

    def trust(self, folder: Path, files: Iterable[BundleFile]) -> None:
        """Note files that were just written here, their digests taken of what was written.

        :param folder: absolute, links resolved.
        """
        time.sleep(_TICK_NS / 1e9)
        with suppress(OSError):
            sights = {file.path: look_at(folder / file.path, file.sha256) for file in files}
            self.remember(folder, {path: sight for path, sight in sights.items() if is_settled(sight)})

    def forget(self, folder: Path) -> None:
        """Take nothing of a bundle for known any more."""
        with suppress(OSError):
            self._path(folder).unlink()

    def _path(self, folder: Path) -> Path:
        return self._root / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:_NAME_CHARS]}.json"

    def _read(self, folder: Path) -> Mapping[str, FileSight]:
        try:
            with self._path(folder).open("rb") as stream:
                record = _Record.model_validate_json(stream.read(_LARGEST_BYTES))
        except (OSError, ValidationError):  # none, damaged, or another version's
            return {}
        return record.files if record.folder == str(folder) else {}

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        """Whole or not at all, whoever else writes it at the same time."""
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".incomplete", delete=False) as stream:
            work = Path(stream.name)
            try:
                stream.write(data)
                stream.flush()
                work.replace(path)
            except BaseException:
                work.unlink(missing_ok=True)
                raise

    def _sweep(self) -> None:
        """Remove the records of bundles that are gone."""
        for path in self._root.glob("*.json"):
            try:
                record = _Record.model_validate_json(path.read_bytes())
            except (OSError, ValidationError):
                continue
            if not (Path(record.folder) / MANIFEST_NAME).exists():
                path.unlink(missing_ok=True)
