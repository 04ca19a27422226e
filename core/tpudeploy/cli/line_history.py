"""What was typed in earlier conversations: a file of JSON strings, one a line, readable by its owner only.

Lines are only ever added, whole, so that several terminals share it. A line that is no JSON counts as it stands.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tpudeploy.compile.store import write_atomically

MOST_KEPT = 1000
_LARGEST_BYTES = 8 << 20


class LineHistory:
    """The history file of one home; whatever is wrong with it, or with writing it, costs no more than the history.

    :param path: None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def load(self) -> list[str]:
        """What was typed, oldest first; a file that has grown too long is cut."""
        if self._path is None:
            return []
        try:
            with self._path.open("rb") as stream:
                lines = stream.read(_LARGEST_BYTES).decode("utf-8", "replace").removesuffix("\n").split("\n")
        except OSError:
            return []
        if len(lines) > 2 * MOST_KEPT:
            lines = lines[-MOST_KEPT:]
            with suppress(OSError):
                write_atomically(self._path, "".join(f"{line}\n" for line in lines).encode())
                self._path.chmod(0o600)
        return list(_entries(lines))

    def add(self, text: str) -> None:
        """Keep one entry."""
        if self._path is None:
            return
        line = (json.dumps(text, ensure_ascii=False) + "\n").encode()
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)


def _entries(lines: list[str]) -> Iterator[str]:
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            entry = line
        if isinstance(entry, str) and entry.strip():
            yield entry
