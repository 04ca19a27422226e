"""Rows of a KV cache on the host, and what a cache knows of the tokens that they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tpudeploy.contracts.dtypes import Array, DType

Rows = list[Array]
"""Rows of consecutive tokens: of each layer and chip the keys, then the values, each (tokens, row bytes) uint8."""

_INFINITY = {DType.F32: 0x7F800000, DType.F16: 0x7C00, DType.BF16: 0x7F80}
"""The bits of positive infinity; those of NaNs are larger numbers."""


@dataclass(frozen=True)
class CacheState:
    """What a cache knows of its tokens; see :class:`tpudeploy.runtime.kv_cache.KvCache`.

    :param ids: the tokens, in order.
    :param starts: positions at which passes began.
    :param settled: how many leading rows are just what they would be had no token ever been drafted.
    """

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    settled: int

    def first(self, length: int) -> CacheState:
        """The state of a cache that was cut to ``length`` tokens."""
        starts = tuple(start for start in self.starts if start < length)
        return CacheState(self.ids[:length], starts, min(self.settled, length))


@dataclass(frozen=True)
class Piece:
    """Rows from position ``start`` on."""

    start: int
    rows: Rows


def row_bytes(rows: Rows) -> int:
    """Bytes of all of them."""
    return sum(array.nbytes for array in rows)


def all_finite(rows: Rows, dtype: DType) -> bool:
    """Whether no element is infinite or no number."""
    if not dtype.is_float:
        return True
    signed, unsigned = (np.dtype(f"{kind}{dtype.itemsize_bytes}") for kind in "iu")
    infinity = _INFINITY[dtype]
    negative = infinity | 1 << (8 * dtype.itemsize_bytes - 1)
    # As signed numbers, what is positive and not finite is largest; as unsigned ones, what is negative and not finite.
    return all(
        array.view(signed).max(initial=0) < infinity and array.view(unsigned).max(initial=0) < negative
        for array in rows
    )


def common_length(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many leading ids are the same; by comparing halves, so that Python looks at few of them itself."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # the first ``low`` are the same, the first ``high`` are not
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def slice_rows(rows: Rows, start: int, stop: int) -> Rows:
    """Some of the rows, without a copy."""
    return [array[start:stop] for array in rows]


def join_rows(first: Rows, second: Rows) -> Rows:
    """Rows one after the other."""
    return [np.concatenate(pair) for pair in zip(first, second, strict=True)]
