"""Hollow bmodels: the same file with a stand-in of a few bytes for each large block, weights and chip program.

A stand-in says the SHA-256 of what it stands for. The vendor's model_tool joins such files as it does full ones: equal
blocks once, unequal ones each, because stand-ins are equal exactly when their blocks are.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tpudeploy.compile.bmodel.description import CHECK_CODE_BYTES, Description, read_description

ALIGNMENT_BYTES = 4096
"""Every block of a file's data begins at a multiple of this."""
_MARK = b"tpudeploy: stand-in for a block\0"


@dataclass(frozen=True)
class Block:
    """A block of a file's data.

    :param start: in the file, bytes.
    """

    start: int
    size: int


@dataclass(frozen=True)
class Hollowed:
    """What was taken out of a file, by its SHA-256 (hex).

    :param weights: of each net the digest of its weights, in the order of the file's stages that have any.
    :param regions: of each of these the regions (offset, size) that operations own.
    """

    blocks: dict[str, Block]
    weights: tuple[str, ...]
    regions: tuple[tuple[tuple[int, int], ...], ...]


def align(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def stand_in(digest: str) -> bytes:
    """What takes the place of a block with this SHA-256 (hex)."""
    return _MARK + bytes.fromhex(digest)


def stood_for(block: bytes) -> str | None:
    """The SHA-256 (hex) of what a block stands for; None where it is no stand-in."""
    if len(block) != len(_MARK) + CHECK_CODE_BYTES or not block.startswith(_MARK):
        return None
    return block[len(_MARK) :].hex()


def write_hollow(source: Path, target: Path) -> Hollowed:
    """Write ``source`` without its weights and chip program.

    :raises CompileError: it is not as the compiler writes it.
    """
    description = read_description(source)
    large = {description.binary(item.binary) for item in description.weights}
    if description.kernel is not None:
        large.add(description.binary(description.kernel))
    with source.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        digests = {block: _digest(data, description.data_start + block[0], block[1]) for block in large}

        def content(block: tuple[int, int]) -> bytes:
            start = description.data_start + block[0]
            return stand_in(digests[block]) if block in large else data[start : start + block[1]]

        weights = tuple(digests[description.binary(item.binary)] for item in description.weights)
        blocks = {digest: Block(description.data_start + start, size) for (start, size), digest in digests.items()}
        _write(description, {block: content(block) for block in description.blocks()}, target)
    return Hollowed(blocks, weights, tuple(item.regions for item in description.weights))


def dress_hollow(source: Path, target: Path, name: str, weights: Mapping[str, str]) -> None:
    """Write a hollow file with one net again: under another name, for other weights.

    :param weights: digest of weights -> digest of those that take their place.
    """
    description = read_description(source)
    with source.open("rb") as stream:
        data = stream.read()
    contents = {}
    for start, size in description.blocks():
        content = data[description.data_start + start :][:size]
        digest = stood_for(content)
        contents[start, size] = stand_in(weights.get(digest, digest)) if digest else content
    for item in description.weights:
        code = contents[description.binary(item.binary)][-CHECK_CODE_BYTES:]
        description.data[item.check_code : item.check_code + CHECK_CODE_BYTES] = code
    (place,) = description.names
    description.rename(place, name)
    _write(description, contents, target)


def _digest(data: mmap.mmap, start: int, size: int) -> str:
    view = memoryview(data)
    try:
        return hashlib.sha256(view[start : start + size]).hexdigest()
    finally:
        view.release()


def _write(description: Description, contents: dict[tuple[int, int], bytes], target: Path) -> None:
    """Lay out the blocks anew, in the same order, and write the file."""
    moved = new_places({block: len(content) for block, content in contents.items()})
    description.move(moved)
    total = data_bytes(moved)
    description.set_data_bytes(total)
    with target.open("wb") as stream:
        stream.write(description.header + description.data)
        for block, content in contents.items():
            stream.seek(description.data_start + moved[block][0])
            stream.write(content)
        stream.truncate(description.data_start + total)


def new_places(sizes: Mapping[tuple[int, int], int]) -> dict[tuple[int, int], tuple[int, int]]:
    """Start and size of blocks (start, size) when they get other sizes, in bytes of the data."""
    places, position = {}, 0
    for block in sorted(sizes):
        places[block] = (position, sizes[block])
        position += align(sizes[block])
    return places


def data_bytes(places: Mapping[tuple[int, int], tuple[int, int]]) -> int:
    """How much data blocks at these places are."""
    return max((start + align(size) for start, size in places.values()), default=0)


def same_bmodel(first: Path, second: Path) -> bool:
    """Whether two bmodels without large blocks are equal but for the time at which they were made."""
    descriptions = [read_description(path) for path in (first, second)]
    if descriptions[0].without_time() != descriptions[1].without_time():
        return False
    data = [path.read_bytes()[item.data_start :] for path, item in zip((first, second), descriptions, strict=True)]
    return data[0] == data[1]
