"""The forms in which the compiler stores weights for the chip, written directly from float32 numbers.

A weight has the shape of its ONNX initializer; that of a matmul is (in, out). Matmuls quantize as ``cpu_nets.quantize``
does, one scale and zero point for ``group_size`` inputs. The chip has 64 lanes, each of which reads the scales of every
64th output: they are stored (64, out / 64, groups).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

import numpy as np

from tpudeploy.compile.cpu_nets.quantize import Quantized, pack_nibbles, quantize
from tpudeploy.contracts.dtypes import Array, DType, to_storage
from tpudeploy.contracts.quant import QuantScheme
from tpudeploy.errors import CompileError
from tpudeploy.graph.weight_file import contiguous

LANES = 64
_ROWS_AT_ONCE = 512


class Form(str, Enum):
    """One of the arrays that a weight becomes."""

    NUMBERS = "numbers"
    """In the scheme's activation type, in the order of the initializer: (in, out)."""
    TRANSPOSED = "transposed"
    """The same as (out, in)."""
    VALUES = "values"
    """Quantized, (out, in); two to a byte at 4 bits."""
    SCALES = "scales"
    ZERO_POINTS = "zero points"

    @property
    def quantized(self) -> bool:
        """Whether the weight must be quantized for it."""
        return self in (Form.VALUES, Form.SCALES, Form.ZERO_POINTS)


class WeightForms:
    """One weight in all its forms; it is quantized once, and only if asked for.

    :param array: float32, in the initializer's shape; of a matmul best a transposed view of (out, in), as is.
    """

    def __init__(self, name: str, array: Array, scheme: QuantScheme) -> None:
        self.name = name
        self.array = array
        self.scheme = scheme
        self._quantized: Quantized | None = None

    def possible(self) -> Iterator[Form]:
        """The forms that a weight of this shape can have."""
        yield Form.NUMBERS
        if self.array.ndim == 2 and min(self.array.shape) > 1:
            yield Form.TRANSPOSED
            size_in, size_out = self.array.shape
            group = self.scheme.group_size
            if group and size_in % group == 0 and size_out % LANES == 0:
                yield from (Form.VALUES, Form.SCALES, Form.ZERO_POINTS)

    def parts(self, form: Form) -> Iterator[Array]:
        """The bytes (uint8, flat) of the weight in a form, in pieces of moderate size.

        :raises CompileError: the 16-bit type cannot hold a number of it.
        """
        if form.quantized:
            yield self._bytes(self._quantized_form(form))
            return
        rows = self.array if form is Form.NUMBERS else self.array.T
        for start in range(0, rows.shape[0], _ROWS_AT_ONCE):
            numbers = to_storage(rows[start : start + _ROWS_AT_ONCE], self.scheme.activation)
            self._check_range(numbers)
            yield self._bytes(numbers)

    def release(self) -> None:
        """Forget the quantized numbers: they are made again if they are asked for again."""
        self._quantized = None

    def _quantized_form(self, form: Form) -> Array:
        if self._quantized is None:
            self._quantized = quantize(contiguous(self.array.T), self.scheme.weight_bits, self.scheme.group_size)
        if form is Form.VALUES:
            values = self._quantized.values
            return pack_nibbles(values) if self.scheme.weight_bits == 4 else values
        if form is Form.ZERO_POINTS:
            return _by_lane(self._quantized.zero_points)
        scales = to_storage(self._quantized.scales, self.scheme.activation)
        self._check_range(scales)
        return _by_lane(scales)

    def _check_range(self, stored: Array) -> None:
        if self.scheme.activation is DType.F16 and not np.isfinite(stored).all():
            raise CompileError(f"{self.name} has numbers that F16 cannot hold.", hint="Choose --quant bf16.")

    @staticmethod
    def _bytes(array: Array) -> Array:
        flat: Array = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return flat


def _by_lane(numbers: Array) -> Array:
    """(out, groups) -> (64, out / 64, groups)."""
    outputs, groups = numbers.shape
    return np.ascontiguousarray(numbers.reshape(outputs // LANES, LANES, groups).transpose(1, 0, 2))
