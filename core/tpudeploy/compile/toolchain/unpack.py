"""Unpack the wheels of the private environment, only the files that are used.

A wheel is a zip file whose content belongs into ``site-packages``. Unpacking it here rather than through pip
leaves out two thirds of TPU-MLIR before it is written, and so halves what an installation needs on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from tpudeploy.compile.toolchain import pins
from tpudeploy.compile.toolchain.pins import Pin
from tpudeploy.errors import FetchError

CHUNK_BYTES = 1 << 20
BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's own
ELF_64_LITTLE = b"\x7fELF\x02\x01"
# Cutting less than this off a file is not worth the while.
TRIM_BYTES = 1 << 20


def verify(wheel: Path, pin: Pin) -> bool:
    """Whether ``wheel`` is the file that was published: same size, same SHA-256."""
    if not wheel.is_file() or wheel.stat().st_size != pin.size_bytes:
        return False
    state = hashlib.sha256()
    with wheel.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest() == pin.sha256


def unpack(wheel: Path, pin: Pin, site: Path, wrote: Callable[[int], None] = lambda _: None) -> int:
    """Unpack what ``pin`` keeps of ``wheel`` into ``site``.

    :param wrote: called with the number of bytes after each file.
    :returns: bytes written.
    :raises FetchError: the wheel is not a zip file.
    :raises OSError: the disk is full, or the folder cannot be written.
    """
    total = 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            for item in archive.infolist():
                if item.is_dir() or not pin.keeps(item.filename):
                    continue
                archive.extract(item, site)
                if "/bin/" in item.filename:
                    (site / item.filename).chmod(0o755)
                trim(site / item.filename)
                total += item.file_size
                wrote(item.file_size)
    except zipfile.BadZipFile as error:
        raise FetchError(f"{wheel.name} is damaged: {error}.", hint="Run the installation again.") from error
    return total


def trim(file: Path) -> int:
    """Cut the symbols for debuggers off a program or library: they lie behind all that is ever loaded.

    :returns: bytes saved; 0 for other files, and for those that have few.
    """
    with file.open("r+b") as elf:
        header = elf.read(64)
        if header[:6] != ELF_64_LITTLE:
            return 0
        (program_headers,) = struct.unpack_from("<Q", header, 32)
        entry_bytes, entries = struct.unpack_from("<HH", header, 54)
        elf.seek(program_headers)
        table = elf.read(entry_bytes * entries)
        # Of each segment: its offset in the file, and after two addresses its size there.
        segments = (struct.unpack_from("<Q16xQ", table, i * entry_bytes + 8) for i in range(entries))
        end = max((offset + size for offset, size in segments), default=0)
        saved = elf.seek(0, 2) - end
        if not entries or saved < TRIM_BYTES:
            return 0
        for position, size in ((40, 8), (60, 4)):  # no section headers any more: their place, number and names
            elf.seek(position)
            elf.write(bytes(size))
        elf.truncate(end)
    return saved


def arrange(package_dir: Path) -> None:
    """Make the links that libraries ask for, set the spare system libraries apart, add what builds kernels."""
    script = package_dir / "bin" / pins.KERNEL_SCRIPT.name
    shutil.copyfile(pins.KERNEL_SCRIPT, script)
    script.chmod(0o755)
    spare = package_dir / "lib" / "spare"
    spare.mkdir(exist_ok=True)
    for name in pins.SPARE:
        source = package_dir / "lib" / "third_party" / name
        if source.exists():
            shutil.move(source, spare / name)
    for name, target in pins.LINKS.items():
        link = package_dir / name
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def tree_bytes(*folders: Path) -> int:
    """Disk space that folders take (bytes; allocated blocks, so what ``du`` says). Absent folders take none.

    What vanishes while it looks is not counted: pip's temporary files come and go.
    """
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder in folders:
        for root, _, files in os.walk(folder):
            for path in (root, *(os.path.join(root, name) for name in files)):  # noqa: PTH118 - thousands of them
                with contextlib.suppress(FileNotFoundError):
                    info = os.lstat(path)
                    if (info.st_dev, info.st_ino) not in seen:
                        seen.add((info.st_dev, info.st_ino))
                        total += info.st_blocks * BLOCK_BYTES
    return total
