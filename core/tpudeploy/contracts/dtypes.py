"""Element types of tensors, and numpy's view of them.

bfloat16 travels as ``uint16`` on the host: numpy has no such type, and a device install needs no other library.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class DType(str, Enum):
    """An element type, by the name that manifests use."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    I32 = "i32"
    I8 = "i8"
    U8 = "u8"

    @property
    def itemsize_bytes(self) -> int:
        """Size of one element in bytes."""
        return _NUMPY[self].itemsize

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy type that holds it on the host; ``uint16`` for bfloat16."""
        return _NUMPY[self]

    @property
    def is_float(self) -> bool:
        """Whether values are floating point (bfloat16 included)."""
        return self in (DType.F32, DType.F16, DType.BF16)


_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.F32: np.dtype(np.float32),
    DType.F16: np.dtype(np.float16),
    DType.BF16: np.dtype(np.uint16),
    DType.I32: np.dtype(np.int32),
    DType.I8: np.dtype(np.int8),
    DType.U8: np.dtype(np.uint8),
}


def to_storage(array: Array, dtype: DType) -> Array:
    """Convert numbers to the form in which ``dtype`` is stored, rounding to nearest even.

    :param array: numbers of any numpy type.
    :returns: a contiguous array of ``dtype.numpy``, of the same shape.
    """
    if dtype is not DType.BF16:
        return np.ascontiguousarray(array, dtype=dtype.numpy)
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    # A NaN's low bits could carry over into a number or be cut to infinity: keep it a quiet NaN.
    high = bits >> np.uint32(16)
    stored: Array = np.where(nan, high | np.uint32(0x40), rounded >> np.uint32(16)).astype(np.uint16)
    return stored


def from_storage(array: Array, dtype: DType) -> Array:
    """Turn stored elements into numbers: the inverse of :func:`to_storage`; floats come back as float32."""
    if dtype is DType.BF16:
        numbers: Array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return numbers
    return array.astype(np.float32) if dtype is DType.F16 else array
