"""Read an ONNX file without its large weights: they stay on disk and are mapped, not loaded.

An ONNX file is a protobuf ``ModelProto``; its weights are ``graph.initializer[i].raw_data``. Walking the wire
format over a mapped file costs nothing per weight byte, while parsing it costs the model's size several times.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

# Field numbers of onnx.proto3: ModelProto.graph, GraphProto.initializer, TensorProto.raw_data.
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
LARGE_BYTES = 1 << 16
# Element types that numpy maps as they lie on disk; other types are read as usual.
MAPPABLE: dict[int, np.dtype[Any]] = {
    onnx.TensorProto.FLOAT: np.dtype("<f4"),
    onnx.TensorProto.FLOAT16: np.dtype("<f2"),
}

Array = npt.NDArray[Any]


class Field(NamedTuple):
    """One field on the wire: its number, and where it and its payload begin and end (bytes)."""

    number: int
    wire: int
    start: int
    payload: int
    end: int


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    """Decode the varint at ``position``; returns the value and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _encode(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[Field]:
    """The fields between two positions.

    :raises ValueError: the bytes are not a protobuf message, or it is cut short.
    """
    position = start
    while position < end:
        key, payload = _varint(data, position)
        wire, length = key & 7, 0
        if wire == VARINT:
            _, after = _varint(data, payload)
        elif wire == LENGTH:
            length, payload = _varint(data, payload)
            after = payload + length
        elif wire in (FIXED32, FIXED64):
            after = payload + (4 if wire == FIXED32 else 8)
        else:
            raise ValueError(f"not an ONNX file: wire type {wire} at byte {position}")
        if after > end:
            raise ValueError(f"the ONNX file is cut short: a field at byte {position} ends at {after}")
        yield Field(key >> 3, wire, position, payload, after)
        position = after


def _message(number: int, payload: bytes) -> bytes:
    return _encode(number << 3 | LENGTH) + _encode(len(payload)) + payload


def _light_tensor(data: mmap.mmap, tensor: Field, raw: dict[str, Field]) -> bytes:
    """The tensor's bytes; without its raw data, noted in ``raw`` by the tensor's name, when that is large."""
    fields = list(_fields(data, tensor.payload, tensor.end))
    large = [f for f in fields if f.number == RAW_DATA and f.end - f.payload >= LARGE_BYTES]
    kept = b"".join(data[f.start : f.end] for f in fields if f not in large)
    if large:
        header = onnx.TensorProto.FromString(kept)
        if header.data_type not in MAPPABLE:
            return data[tensor.payload : tensor.end]
        raw[header.name] = large[-1]
    return kept


def _light_model(data: mmap.mmap) -> tuple[Any, dict[str, Field]]:
    """The model without large raw data, and where those lie."""
    raw: dict[str, Field] = {}
    model = bytearray()
    for top in _fields(data, 0, len(data)):
        if top.number != GRAPH:
            model += data[top.start : top.end]
            continue
        graph = bytearray()
        for field in _fields(data, top.payload, top.end):
            if field.number == INITIALIZER:
                graph += _message(INITIALIZER, _light_tensor(data, field, raw))
            else:
                graph += data[field.start : field.end]
        model += _message(GRAPH, bytes(graph))
    return onnx.ModelProto.FromString(bytes(model)), raw


def _external(tensor: Any, folder: Path) -> Array | None:
    """Map a large external tensor; ``None`` if it is small or of another type, and its data are read in."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    file = folder / place["location"]
    count = int(np.prod(tensor.dims, dtype=np.int64))
    dtype = MAPPABLE.get(tensor.data_type)
    if dtype is None or count * dtype.itemsize < LARGE_BYTES:
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
        return None
    return np.memmap(file, dtype, "r", int(place.get("offset", 0)), tuple(tensor.dims))


def read(path: Path) -> tuple[Any, dict[str, Array]]:
    """Read a model and map its large weights.

    :returns: the ``ModelProto``, in which large initializers have no data, and those data by name
        (read-only arrays over the file, float32 or float16, little-endian).
    :raises ValueError: not an ONNX file, or cut short.
    :raises OSError: the file or one of its external data files cannot be read.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    model, raw = _light_model(data)
    arrays: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        if tensor.name in raw:
            dtype = MAPPABLE[tensor.data_type]
            place = raw[tensor.name]
            flat = np.frombuffer(data, dtype, (place.end - place.payload) // dtype.itemsize, place.payload)
            arrays[tensor.name] = flat.reshape(tuple(tensor.dims))
        elif tensor.data_location == onnx.TensorProto.EXTERNAL:
            array = _external(tensor, path.parent)
            if array is not None:
                arrays[tensor.name] = array
    return model, arrays
