"""Files on their way: a folder beside the checkpoint's, with a journal of what is known of each file in it.

A file grows as ``NAME.part`` and loses the ending when its size and digest were checked. The checkpoint's folder
appears only when all files have: by one rename. A process that is killed leaves parts and journal behind, and the next
one goes on from there; what the journal does not vouch for is checked again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tpudeploy.compile.store import publish_folder, write_atomically
from tpudeploy.contracts.base import Value
from tpudeploy.errors import StorageError
from tpudeploy.fetch.model import Checksum, FetchFile

_JOURNAL_NAME = ".fetch.json"


class PartRecord(Value):
    """What is known of one file.

    :param size_bytes: what it is to become, and ``checksum`` likewise.
    :param whole: whether it was checked.
    :param url: where the part is from.
    :param etag: what the server called the content, when it began to send it.
    """

    size_bytes: int
    checksum: Checksum | None
    whole: bool = False
    url: str = ""
    etag: str = ""

    def describes(self, file: FetchFile) -> bool:
        """Whether it is about the content that ``file`` is to have."""
        return (self.size_bytes, self.checksum) == (file.size_bytes, file.checksum)


class Parts:
    """The files of one fetch that are on their way.

    :param final: the checkpoint's folder; the parts lie in ``.NAME.incomplete`` beside it.
    """

    def __init__(self, final: Path) -> None:
        self.final = final
        self.folder = final.with_name(f".{final.name}.incomplete")
        self._records = _read_journal(self.folder / _JOURNAL_NAME)

    def whole_path(self, file: FetchFile) -> Path:
        """Where a file lies when it is whole."""
        return self.folder / file.path

    def part_path(self, file: FetchFile) -> Path:
        """Where a file grows."""
        return self.folder / f"{file.path}.part"

    def received_bytes(self, file: FetchFile) -> int:
        """How much of a file is here, checked or not."""
        record = self._records.get(file.path)
        if record is not None and not record.describes(file):
            return 0
        whole = _size_bytes(self.whole_path(file))
        if whole == file.size_bytes:
            return whole
        part = _size_bytes(self.part_path(file)) if record is not None else 0
        return part if part <= file.size_bytes else 0

    def open(self, files: Iterable[FetchFile]) -> None:
        """Make the folder, and drop from it what is of other content than these files.

        :raises StorageError: an unfinished checkpoint is in the way.
        """
        if not self.folder.exists() and self.final.is_dir() and not self.final.is_symlink():
            self.final.replace(self.folder)  # files are missing there: what it holds is checked and completed
        elif self.final.exists() or self.final.is_symlink():
            raise StorageError(f"{self.final} is not a whole checkpoint.", hint="Move it away, then fetch again.")
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = {file.path: file for file in files}
        for path, record in list(self._records.items()):
            if path not in wanted or not record.describes(wanted[path]):
                self._drop(path)
        for file in wanted.values():
            self.whole_path(file).parent.mkdir(parents=True, exist_ok=True)
            if file.path not in self._records:
                self.part_path(file).unlink(missing_ok=True)

    def is_whole(self, file: FetchFile) -> bool:
        """Whether a file is here and was checked."""
        record = self._records.get(file.path)
        return record is not None and record.whole and _size_bytes(self.whole_path(file)) == file.size_bytes

    def etag(self, file: FetchFile) -> str:
        """What the part's server called the content; empty where it is not known for ``file.url``."""
        record = self._records.get(file.path)
        return record.etag if record is not None and record.url == file.url else ""

    def begin(self, file: FetchFile, etag: str) -> None:
        """Note that a part is about to be written from its start.

        :param etag: the server's name for the content; a weak one cannot be asked for, and is not kept.
        """
        strong = etag if etag.startswith('"') else ""
        self._note(file, PartRecord(size_bytes=file.size_bytes, checksum=file.checksum, url=file.url, etag=strong))

    def finish(self, file: FetchFile) -> None:
        """Note that a file is whole and checked; a part becomes the file."""
        if self.part_path(file).exists():
            self.part_path(file).replace(self.whole_path(file))
        self._note(file, PartRecord(size_bytes=file.size_bytes, checksum=file.checksum, whole=True))

    def forget(self, file: FetchFile) -> None:
        """Drop what is here of a file."""
        self._drop(file.path)

    def publish(self) -> None:
        """Turn the parts into the checkpoint; every file must be whole."""
        (self.folder / _JOURNAL_NAME).unlink(missing_ok=True)
        publish_folder(self.folder, self.final)

    def _drop(self, path: str) -> None:
        for name in (path, f"{path}.part"):
            (self.folder / name).unlink(missing_ok=True)
        if self._records.pop(path, None) is not None:
            self._write_journal()

    def _note(self, file: FetchFile, record: PartRecord) -> None:
        self._records[file.path] = record
        self._write_journal()

    def _write_journal(self) -> None:
        content = {path: record.model_dump(mode="json") for path, record in self._records.items()}
        write_atomically(self.folder / _JOURNAL_NAME, json.dumps(content, indent=1).encode())


def _read_journal(path: Path) -> dict[str, PartRecord]:
    """The journal, or an empty one: without it, what is here is only checked once more."""
    try:
        return TypeAdapter(dict[str, PartRecord]).validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return {}


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
