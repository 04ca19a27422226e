"""Conversations on this machine's disk: one JSON file each, readable by their owner only.

Below the home: ``conversations/ID.json`` is kept without being asked for and bounded in number, the oldest go first;
``conversations/saved/NAME.json`` was saved by name and stays. A file is replaced as a whole or not at all. Two
terminals in one conversation do not overwrite each other: each file carries a revision, and who finds another one than
it has seen goes on in a file of its own.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from tpudeploy.compile.store import storage_errors
from tpudeploy.contracts.base import Value
from tpudeploy.contracts.chat import Message
from tpudeploy.errors import StorageError, UnknownNameError, UsageError

MOST_KEPT = 100
"""Conversations that are kept without a name."""
VERSION = 1
_SUFFIX = ".json"
_LARGEST_BYTES = 64 << 20
_LOCK_WAIT_S = 10.0
_NAME = re.compile(r"\w[\w.-]*")
_LONGEST_NAME_BYTES = 200

SettingValue = str | bool | int | float | None


class StoredChat(Value):
    """What is kept of a conversation.

    :param revision: another one each time the file is written.
    :param model: what it was last held with, for example ``chatglm3:6b``.
    :param messages: all of them, a system message first where there is one.
    :param settings: what ``/set`` shows, by name.
    """

    version: Literal[1] = 1
    revision: str
    model: str
    messages: tuple[Message, ...]
    settings: dict[str, SettingValue] = Field(default_factory=dict)

    @property
    def title(self) -> str:
        """The first question."""
        return next((message.content for message in self.messages if message.role == "user"), "")

    @property
    def turns(self) -> int:
        """Questions."""
        return sum(message.role == "user" for message in self.messages)


@dataclass(frozen=True)
class Entry:
    """One file of the store.

    :param name: by which it is loaded.
    :param chat: None where the file is damaged.
    """

    name: str
    saved: bool
    modified: float
    chat: StoredChat | None


class ChatStore:
    """The conversations of one home.

    :param home: see :class:`~tpudeploy.settings.Settings`; nothing is written before the first conversation is.
    """

    def __init__(self, home: Path, *, most_kept: int = MOST_KEPT) -> None:
        self._root = home / "conversations"
        self._saved = self._root / "saved"
        self._most_kept = most_kept

    def load(self, name: str) -> StoredChat:
        """A conversation by its name or id.

        :raises UnknownNameError: there is none.
        :raises StorageError: its file is damaged or cannot be read.
        """
        return _read(self._find(name))

    def is_saved(self, name: str) -> bool:
        """Whether a conversation was saved under this name."""
        return bool(_NAME.fullmatch(name)) and (self._saved / f"{name}{_SUFFIX}").is_file()

    def last(self) -> tuple[str, StoredChat]:
        """Id and content of what was kept last.

        :raises UsageError: nothing is kept.
        :raises StorageError: the newest file is damaged or cannot be read.
        """
        with _disk(self._root):
            kept = self._kept()
        if not kept:
            raise UsageError("there is no conversation to continue.", hint="Begin one without --continue.")
        return kept[0].stem, _read(kept[0])

    def entries(self) -> list[Entry]:
        """Saved ones by name, then the kept ones, newest first."""
        with _disk(self._root):
            saved = sorted(self._saved.glob(f"*{_SUFFIX}"))
            paths = [path for path in (*saved, *self._kept()) if not path.name.startswith(".")]
        return [Entry(path.stem, path.parent == self._saved, _mtime(path), _try_read(path)) for path in paths]

    def delete(self, name: str) -> None:
        """Remove a conversation by its name or id. :raises UnknownNameError: there is none."""
        path = self._find(name)
        with _disk(self._root):
            path.unlink(missing_ok=True)

    def save(self, name: str, chat: StoredChat, *, replace: bool = False) -> None:
        """Keep a conversation under a name, for good.

        :param replace: whether one of that name may be replaced.
        :raises UsageError: no good name, or it is taken.
        :raises StorageError: the disk does not take it.
        """
        check_name(name)
        path = self._saved / f"{name}{_SUFFIX}"
        with _disk(self._root), self._locked():
            if path.exists() and not replace:
                raise UsageError(f"there is a conversation {name} already.", hint=f"/delete {name} removes it.")
            _write(path, chat)

    def keep(self, chat_id: str, chat: StoredChat, *, seen: str) -> str:
        """Keep a conversation, and remove the oldest where there are too many.

        :param chat_id: its file; empty for a new one.
        :param seen: revision of what this process read or wrote there last.
        :returns: its id from now on: another one, where somebody else wrote the file meanwhile.
        :raises StorageError: the disk does not take it.
        """
        with _disk(self._root), self._locked():
            path = self._root / f"{chat_id or _new_id()}{_SUFFIX}"
            if chat_id and path.exists():
                there = _try_read(path)
                if there is None or there.revision != seen:
                    path = self._root / f"{_new_id()}{_SUFFIX}"
            _write(path, chat)
            for old in self._kept()[self._most_kept :]:
                old.unlink(missing_ok=True)
        return path.stem

    def _find(self, name: str) -> Path:
        for folder in (self._saved, self._root):
            path = folder / f"{name}{_SUFFIX}"
            if _NAME.fullmatch(name) and path.is_file():
                return path
        raise UnknownNameError("conversation", name, [entry.name for entry in self.entries()])

    def _kept(self) -> list[Path]:
        """Files without a name, newest first."""
        paths = [path for path in self._root.glob(f"*{_SUFFIX}") if not path.name.startswith(".")]
        return sorted(paths, key=lambda path: (_mtime(path), path.name), reverse=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone in the store, which exists from now on."""
        for folder in (self._root, self._saved):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        try:
            with FileLock(self._root / ".lock", timeout=_LOCK_WAIT_S, mode=0o600):
                for stale in self._root.rglob(".*.incomplete"):  # of a process that was killed: others hold the lock
                    stale.unlink(missing_ok=True)
                yield
        except Timeout as error:
            raise StorageError(
                f"another tpudeploy holds {self._root} for over {_LOCK_WAIT_S:.0f} s.", hint="Try again."
            ) from error


def check_name(name: str) -> None:
    """:raises UsageError: a name that cannot be a file's."""
    if not _NAME.fullmatch(name) or len(os.fsencode(name)) > _LONGEST_NAME_BYTES:
        raise UsageError(
            f"{name!r} is no name for a conversation.", hint="Letters, digits and . _ - make one, without spaces."
        )


def snapshot(model: str, messages: Sequence[Message], settings: Mapping[str, SettingValue]) -> StoredChat:
    """A conversation as it is now, with a revision of its own."""
    return StoredChat(revision=secrets.token_hex(8), model=model, messages=tuple(messages), settings=dict(settings))


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Whatever a disk does becomes one clear error."""
    try:
        with storage_errors(folder):
            yield
    except OSError as error:
        what = error.filename or folder
        raise StorageError(
            f"{what} cannot be used: {error.strerror or error}.", hint="--no-store does without it."
        ) from error


def _new_id() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0


def _read(path: Path) -> StoredChat:
    with _disk(path), path.open("rb") as stream:
        data = stream.read(_LARGEST_BYTES)
    try:
        return StoredChat.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"])) or "no JSON"
        what = "is from another version of tpudeploy" if where == "version" else f"is damaged ({where})"
        raise StorageError(
            f"the conversation {path} {what}.", hint="Move or remove that file; other conversations are not affected."
        ) from error


def _try_read(path: Path) -> StoredChat | None:
    with suppress(StorageError):
        return _read(path)
    return None


def _write(path: Path, chat: StoredChat) -> None:
    """Whole or not at all, for its owner only, as mkstemp makes files."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".incomplete")
    work = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(chat.model_dump_json(indent=1).encode())
            stream.flush()
            os.fsync(stream.fileno())
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)
