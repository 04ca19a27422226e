"""The weight file of a slice: one uncompressed ``.npz`` that ONNX and the compiler read alike.

Its arrays bear the names of the ONNX initializers, float32, C order. That is the format of the compiler's own weight
files, and because nothing in it is compressed, an ONNX file can point at each array by offset as external data. So
the nets of a layer share one copy of its weights on disk, and no tool has to write another.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.dtypes import Array

_EPOCH = (1980, 1, 1, 0, 0, 0)
_LOCAL_HEADER_BYTES = 30


class WeightFile(Value):
    """A written weight file.

    :param name: its file name.
    :param entries: array name -> (offset, length) of the numbers, in bytes.
    """

    name: str
    entries: dict[str, tuple[int, int]]


def write_weight_file(path: Path, arrays: Iterable[tuple[str, Array]]) -> WeightFile:
    """Write arrays one by one, holding one in memory at a time; the same arrays give the same bytes.

    :param arrays: names and float32 arrays.
    """
    entries: dict[str, tuple[int, int]] = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays:
            entries[name] = _write_entry(archive, name, contiguous(array))
    return WeightFile(name=path.name, entries=entries)


def contiguous(array: Array) -> Array:
    """Float32 in C order. Torch transposes a large matrix three times as fast as numpy."""
    if array.ndim == 2 and array.dtype == np.float32 and array.flags.f_contiguous:
        import torch

        transposed: Array = torch.from_numpy(array).contiguous().numpy()
        return transposed
    return np.ascontiguousarray(array, dtype=np.float32)


def _write_entry(archive: zipfile.ZipFile, name: str, array: Array) -> tuple[int, int]:
    info = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    with archive.open(info, "w", force_zip64=True) as stream:
        stream.write(header.getvalue())
        # Read back where the entry's local header put the data: file name and the zip64 field lie before it.
        start = _data_start(info)
        stream.write(array.reshape(-1).view(np.uint8).data)
    return start + len(header.getvalue()), array.nbytes


def _data_start(info: zipfile.ZipInfo) -> int:
    zip64_field_bytes = 20
    return info.header_offset + _LOCAL_HEADER_BYTES + len(info.filename.encode()) + zip64_field_bytes
