"""Reads FlatBuffers, every offset checked: what a bmodel's description is written in.

A table begins with the distance to its field index; a field that is absent has index entry 0. Offsets are unsigned,
except that first one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator


class FlatBufferError(ValueError):
    """The bytes are no FlatBuffer, or a damaged one."""


class Table:
    """A table within ``data``, at ``position``."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position
        index = position - _read(data, "<i", position)
        size = _read(data, "<H", index)
        self._fields = [_read(data, "<H", index + at) for at in range(4, size, 2)]

    def _place(self, field: int) -> int:
        """Where a field lies, or 0 where it is absent."""
        offset = self._fields[field] if field < len(self._fields) else 0
        return self._position + offset if offset else 0

    def number(self, field: int, form: str, default: int = 0) -> int:
        """A scalar; ``form`` as in :mod:`struct`."""
        place = self._place(field)
        return _read(self._data, form, place) if place else default

    def numbers(self, field: int, form: str) -> tuple[int, ...]:
        """An inline structure of several scalars, such as bmodel's Binary; empty where it is absent."""
        place = self._place(field)
        return _unpack(self._data, form, place) if place else ()

    def text(self, field: int) -> str:
        """A string; empty where it is absent."""
        return self.raw(field).decode("utf-8", "replace")

    def raw(self, field: int) -> bytes:
        """A vector of bytes."""
        start, count = self._vector(field)
        _require(self._data, start, count)
        return self._data[start : start + count]

    def scalars(self, field: int, form: str) -> tuple[int, ...]:
        """A vector of scalars; ``form`` is one of them, without the byte order."""
        start, count = self._vector(field)
        return _unpack(self._data, f"<{count}{form}", start)

    def table(self, field: int) -> Table | None:
        """A table, or None where it is absent."""
        place = self._place(field)
        return Table(self._data, place + _read(self._data, "<I", place)) if place else None

    def tables(self, field: int) -> Iterator[Table]:
        """A vector of tables."""
        start, count = self._vector(field)
        _require(self._data, start, 4 * count)
        for place in range(start, start + 4 * count, 4):
            yield Table(self._data, place + _read(self._data, "<I", place))

    def _vector(self, field: int) -> tuple[int, int]:
        place = self._place(field)
        if not place:
            return 0, 0
        start = place + _read(self._data, "<I", place)
        return start + 4, _read(self._data, "<I", start)


def root(data: bytes) -> Table:
    """The table that a buffer holds."""
    return Table(data, _read(data, "<I", 0))


def _read(data: bytes, form: str, place: int) -> int:
    value: int = _unpack(data, form, place)[0]
    return value


def _unpack(data: bytes, form: str, place: int) -> tuple[int, ...]:
    _require(data, place, struct.calcsize(form))
    return struct.unpack_from(form, data, place)


def _require(data: bytes, start: int, count: int) -> None:
    if start < 0 or start + count > len(data):
        raise FlatBufferError(f"bytes {start} to {start + count} lie outside of {len(data)}")
