"""Where the pieces of a bmodel file are told of: its FlatBuffer, read for the *places* of what is to be changed.

A file is a header, a FlatBuffer that describes the nets, and binary data. What this package changes has a fixed size:
``Binary`` structures (start and size of a piece of the data), check codes (SHA-256 of weights), and names that get
shorter. So nothing is ever rebuilt, only overwritten. Fields are numbered as in the published ``bmodel.fbs``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tpudeploy.errors import CompileError

HEADER = struct.Struct("<IIIQ")
MAGIC = 0xFF55AAEE
BINARY = struct.Struct("<QQ")
CHECK_CODE_BYTES = 32
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Weights:
    """One net's weights: the place of the ``Binary`` and of the check code, and the regions that operations own.

    :param regions: (offset, size) within the weights, bytes; they follow one another.
    """

    binary: int
    check_code: int
    regions: tuple[tuple[int, int], ...]


@dataclass
class Description:
    """The FlatBuffer of a file with the places that matter.

    :param data: the bytes; overwritten in place.
    :param header: the file's header; holds sizes and nothing else that changes.
    :param binaries: places of all ``Binary`` structures.
    :param names: places of the nets' names (of the length before the text).
    :param time: place of the text of when the file was made.
    :param kernel: place of the ``Binary`` of the program that the file brings for the chip, or None.
    """

    data: bytearray
    header: bytearray
    binaries: list[int] = field(default_factory=list)
    names: list[int] = field(default_factory=list)
    weights: list[Weights] = field(default_factory=list)
    time: int = 0
    kernel: int | None = None

    def binary(self, place: int) -> tuple[int, int]:
        """Start and size (bytes) of a piece of the data."""
        start, size = BINARY.unpack_from(self.data, place)
        return int(start), int(size)

    def blocks(self) -> list[tuple[int, int]]:
        """Start and size of each piece of the data, in its order; empty pieces lie at the start of others."""
        return sorted({self.binary(place) for place in self.binaries})

    def move(self, moved: Mapping[tuple[int, int], tuple[int, int]]) -> None:
        """Tell of other starts and sizes, for each block that there is."""
        for place, block in {place: self.binary(place) for place in self.binaries}.items():
            BINARY.pack_into(self.data, place, *moved[block])

    def rename(self, place: int, name: str) -> None:
        """Shorten a name; what remains of the old one is dead space.

        :raises CompileError: the new name is longer.
        """
        old = _LENGTH.unpack_from(self.data, place)[0]
        new = name.encode()
        if len(new) > old:
            raise CompileError(f"the net name {name!r} is longer than {old} bytes.")
        _LENGTH.pack_into(self.data, place, len(new))
        start = place + _LENGTH.size
        self.data[start : start + old] = new.ljust(old, b"\0")

    def text(self, place: int) -> str:
        """The name at a place."""
        (length,) = _LENGTH.unpack_from(self.data, place)
        return self.data[place + 4 : place + 4 + length].decode()

    def without_time(self) -> bytes:
        """The description, with blanks for the time: all that two compiles of one net differ in."""
        (length,) = _LENGTH.unpack_from(self.data, self.time)
        start = self.time + _LENGTH.size
        return bytes(self.data[:start] + bytes(length) + self.data[start + length :])

    @property
    def data_start(self) -> int:
        """Where the binary data begins in the file."""
        return len(self.header) + len(self.data)

    def set_data_bytes(self, size: int) -> None:
        """Tell in the header how much data follows."""
        HEADER.pack_into(self.header, 0, MAGIC, len(self.header), len(self.data), size)


def read_description(path: Path) -> Description:
    """Read header and description of a bmodel.

    :raises CompileError: it is not as the compiler writes it.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(HEADER.size)
            magic, header_bytes, description_bytes, _ = HEADER.unpack(start)
            if magic != MAGIC:
                raise ValueError("wrong magic number")
            header = bytearray(start + stream.read(header_bytes - HEADER.size))
            description = Description(bytearray(stream.read(description_bytes)), header)
        _find(description)
    except (ValueError, struct.error, IndexError) as error:
        raise CompileError(f"{path} is not a bmodel as the compiler writes it: {error}.") from error
    return description


class _Table:
    """A FlatBuffer table at ``place``: where its fields lie."""

    def __init__(self, data: bytearray, place: int) -> None:
        self.data = data
        self.place = place
        index = place - struct.unpack_from("<i", data, place)[0]
        (size,) = struct.unpack_from("<H", data, index)
        self.fields = struct.unpack_from(f"<{(size - 4) // 2}H", data, index + 4)

    def at(self, number: int) -> int | None:
        """The place of a field's inline value, or None where the field is absent."""
        offset = self.fields[number] if number < len(self.fields) else 0
        return self.place + offset if offset else None

    def target(self, number: int) -> int | None:
        """The place that a field points to."""
        place = self.at(number)
        return None if place is None else place + int(_LENGTH.unpack_from(self.data, place)[0])

    def table(self, number: int) -> _Table | None:
        """A table."""
        place = self.target(number)
        return None if place is None else _Table(self.data, place)

    def tables(self, number: int) -> Iterator[_Table]:
        """The tables of a vector."""
        place = self.target(number)
        if place is None:
            return
        (count,) = _LENGTH.unpack_from(self.data, place)
        for entry in range(place + 4, place + 4 + 4 * count, 4):
            yield _Table(self.data, entry + _LENGTH.unpack_from(self.data, entry)[0])

    def structs(self, number: int) -> Iterator[int]:
        """Places of the ``Binary`` structures of a vector."""
        place = self.target(number)
        if place is not None:
            (count,) = _LENGTH.unpack_from(self.data, place)
            yield from range(place + 4, place + 4 + BINARY.size * count, BINARY.size)

    def number(self, number: int) -> int:
        """An unsigned 64-bit scalar."""
        place = self.at(number)
        return 0 if place is None else int(struct.unpack_from("<Q", self.data, place)[0])


def _find(description: Description) -> None:
    """Note every place."""
    root = _Table(description.data, _LENGTH.unpack_from(description.data, 0)[0])
    for number in (6, 8):  # the programs for the chip and for its host
        module = root.table(number)
        place = module.at(1) if module else None
        if place is not None:
            description.binaries.append(place)
            description.kernel = place if number == 6 else description.kernel
    time = root.target(2)
    if time is None:
        raise ValueError("no time of making")
    description.time = time
    for net in root.tables(4):
        name = net.target(0)
        if name is None:
            raise ValueError("a net without a name")
        description.names.append(name)
        for stage in net.tables(3):
            description.binaries.extend(_stage_binaries(stage))
            weights = _weights(stage)
            if weights is not None:
                description.weights.append(weights)


def _stage_binaries(stage: _Table) -> Iterator[int]:
    memory = stage.table(4)
    subnets = list(stage.tables(12))
    groups = [*stage.tables(8), *(group for subnet in subnets for group in subnet.tables(1))]
    cores = [core for subnet in subnets for core in subnet.tables(14)]
    groups += [group for core in cores for group in core.tables(0)]
    parameters = [parameter for subnet in subnets for parameter in subnet.tables(2)]
    found = [memory.at(2) if memory else None]
    found += [group.at(number) for group in groups for number in (2, 3)]
    found += [stage.at(number) for number in (9, 11, 15, 19)]
    found += [parameter.at(1) for parameter in parameters]
    found += [constant.at(1) for parameter in parameters for constant in parameter.tables(2)]
    yield from (place for place in found if place is not None)
    for core in cores:
        for number in (1, 2, 3):
            yield from core.structs(number)


def _weights(stage: _Table) -> Weights | None:
    memory = stage.table(4)
    if memory is None:
        return None
    binary, code = memory.at(2), memory.target(1)
    if binary is None or code is None or not BINARY.unpack_from(memory.data, binary)[1]:
        return None
    if _LENGTH.unpack_from(memory.data, code)[0] != CHECK_CODE_BYTES:
        raise ValueError("a check code that is no SHA-256")
    regions = tuple((location.number(1), location.number(2)) for location in memory.tables(3))
    return Weights(binary, code + _LENGTH.size, regions)
