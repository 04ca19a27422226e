"""Fill the stand-ins of a joined hollow file: the bmodel as model_tool would have made it from full ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from tpudeploy.compile.bmodel.description import Description, read_description
from tpudeploy.compile.bmodel.hollow import align, data_bytes, new_places, stood_for
from tpudeploy.errors import CompileError

_CHUNK_BYTES = 16 << 20


def fill_hollow(source: Path, target: Path, files: Mapping[str, Path]) -> None:
    """Write ``source`` with the blocks that its stand-ins stand for. Memory: some megabytes, whatever their size.

    :param files: digest of a block -> the file that holds it and nothing else.
    :raises CompileError: a block is missing, or the file is not laid out as the compiler does it.
    """
    description = read_description(source)
    with source.open("rb") as stream, target.open("wb") as out:
        blocks = _blocks(description, stream, files)
        sizes = {block: path.stat().st_size if path else block[1] for block, path in blocks.items()}
        moved = new_places(sizes)
        description.move(moved)
        description.set_data_bytes(data_bytes(moved))
        out.write(description.header + description.data)
        for block, path in blocks.items():
            out.seek(description.data_start + moved[block][0])
            if path is None:
                stream.seek(description.data_start + block[0])
                _copy(stream, out, block[1])
            else:
                with path.open("rb") as content:
                    _copy(content, out, sizes[block])
        out.truncate(description.data_start + data_bytes(moved))


def _blocks(
    description: Description, stream: BinaryIO, files: Mapping[str, Path]
) -> dict[tuple[int, int], Path | None]:
    """Each block of the hollow file with the file that belongs in its place, in the order of the data."""
    found: dict[tuple[int, int], Path | None] = {}
    end = 0
    for start, size in description.blocks():
        if start != align(end):
            raise CompileError("a joined bmodel is not laid out as expected: a gap between two blocks.")
        end = start + size
        stream.seek(description.data_start + start)
        digest = stood_for(stream.read(size)) if size else None
        if digest is not None and digest not in files:
            raise CompileError(f"the block {digest[:12]} of a joined bmodel is missing.")
        found[start, size] = files[digest] if digest is not None else None
    return found


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    """Copy bytes, through the kernel where it can: no page of them enters this process."""
    target.flush()
    begin, end = source.tell(), source.tell() + size
    position, place = begin, target.tell()
    while position < end:
        try:
            done = os.copy_file_range(
                source.fileno(), target.fileno(), min(end - position, _CHUNK_BYTES), position, place
            )
        except OSError:
            break
        if not done:
            break
        position, place = position + done, place + done
    source.seek(position)
    target.seek(place)
    while position < end:
        chunk = source.read(min(end - position, _CHUNK_BYTES))
        if not chunk:
            raise CompileError("a block of a bmodel ends too early.")
        target.write(chunk)
        position += len(chunk)
