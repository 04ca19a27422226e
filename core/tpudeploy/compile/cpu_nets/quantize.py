"""Weights to 8 or 4 bits, bit for bit as the compiler does it for the chip (its modes W8F16, W4F16 and their BF16 kin).

One scale and one zero point serve ``group_size`` consecutive inputs of one output column. With ``top`` the largest
integer (255 or 15), in float32 throughout and every rounding half away from zero:

    scale = max(largest - smallest, 1e-5) / top
    zero  = clamp(-round(smallest / scale), 0, top)
    value = clamp(round(weight / scale) + zero, 0, top)

The chip stores the scale in 16 bits *after* the values were computed with all of it, and computes with
``(value - zero) * scale``. Compared with the compiler's own weight files in tests/test_cpu_nets_chip.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tpudeploy.contracts.dtypes import Array

_SMALLEST_RANGE = np.float32(1e-5)
_BELOW_HALF = np.nextafter(np.float32(0.5), np.float32(0))
"""Adding this before truncating rounds every float32 as C does; 0.5 itself would turn 0.49999997 into 1."""
_ELEMENTS_AT_ONCE = 1 << 16
"""Work in pieces that stay in a core's cache: three times as fast as whole matrices."""


class Quantized(NamedTuple):
    """A matrix in integers.

    :param values: uint8 (out, in), each below ``2 ** bits``.
    :param scales: float32 (out, in / group_size), not yet rounded to 16 bits.
    :param zero_points: uint8 (out, in / group_size).
    """

    values: Array
    scales: Array
    zero_points: Array


def quantize(weight: Array, bits: int, group_size: int) -> Quantized:
    """Quantize a matrix.

    :param weight: float32 (out, in), finite; ``in`` is a multiple of ``group_size``.
    :param bits: 8 or 4.
    """
    rows, columns = weight.shape
    values = np.empty((rows, columns), dtype=np.uint8)
    scales = np.empty((rows, columns // group_size), dtype=np.float32)
    zero_points = np.empty(scales.shape, dtype=np.uint8)
    step = max(1, _ELEMENTS_AT_ONCE // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        groups = np.ascontiguousarray(weight[part], dtype=np.float32).reshape(-1, scales.shape[1], group_size)
        _quantize_groups(groups, bits, values[part].reshape(groups.shape), scales[part], zero_points[part])
    return Quantized(values, scales, zero_points)


def _quantize_groups(groups: Array, bits: int, values: Array, scales: Array, zero_points: Array) -> None:
    """Quantize (rows, count, group_size) into ``values`` alike, ``scales`` and ``zero_points`` (rows, count)."""
    top = np.float32(2**bits - 1)
    smallest, largest = groups.min(axis=2), groups.max(axis=2)
    np.divide(np.maximum(largest - smallest, _SMALLEST_RANGE), top, out=scales)
    zeros = np.clip(-_round_half_away(smallest / scales), 0, top)
    zero_points[...] = zeros
    numbers = _round_half_away(groups / scales[:, :, None])
    numbers += zeros[:, :, None]
    np.clip(numbers, 0, top, out=numbers)
    values[...] = numbers


def _round_half_away(numbers: Array) -> Array:
    """C's ``round``, in place; numpy's own rounds halves to even."""
    numbers += np.copysign(_BELOW_HALF, numbers)
    rounded: Array = np.trunc(numbers, out=numbers)
    return rounded


def pack_nibbles(values: Array) -> Array:
    """Two values below 16 a byte, the first in the low half: uint8 (..., n) -> (..., ceil(n / 2))."""
    if values.shape[-1] % 2:
        values = np.concatenate((values, np.zeros_like(values[..., :1])), axis=-1)
    packed: Array = values[..., 0::2] | (values[..., 1::2] << 4)
    return packed
