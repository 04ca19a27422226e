"""The KV cache: one buffer of keys and one of values a layer, and the token ids whose rows they hold.

A row is what one token adds to one layer: ``kv_heads * head_dim`` elements. Rows below :attr:`KvCache.length` are
valid; whatever lies above is never seen (the attention mask hides it) and is overwritten by the tokens to come. A
padded pass writes all of its rows, so the buffers have more rows than tokens can ever be valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpudeploy.contracts.backend import Buffer, Session, TensorView
from tpudeploy.contracts.net import NetSet


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer, each (capacity, kv_heads, head_dim)."""

    keys: Buffer
    values: Buffer


class KvCache:
    """Device rows of every layer, and which tokens they belong to.

    :param layer_chips: for each layer, the chip that runs it.
    :param capacity: rows of each buffer.
    """

    def __init__(self, session: Session, nets: NetSet, layer_chips: Sequence[int], capacity: int) -> None:
        config = nets.config
        self._session = session
        self.capacity = capacity
        self.row_bytes = config.kv_size * nets.activation.itemsize_bytes
        self._row_shape = (config.num_kv_heads, config.head_dim)
        self._dtype = nets.activation
        size = capacity * self.row_bytes
        self._layers = [
            LayerCache(session.allocate(size, chip=chip), session.allocate(size, chip=chip)) for chip in layer_chips
        ]
        self._ids: list[int] = []

    @property
    def length(self) -> int:
        """Tokens whose rows are valid."""
        return len(self._ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens whose rows are valid, in order."""
        return tuple(self._ids)

    def views(self, layer: int, rows: int) -> tuple[TensorView, TensorView]:
        """The first ``rows`` rows of a layer's keys and values, each (1, rows, kv_heads, head_dim)."""
        shape = (1, rows, *self._row_shape)
        buffers = self._layers[layer]
        return (
            TensorView(buffers.keys, shape, self._dtype),
            TensorView(buffers.values, shape, self._dtype),
        )

    def common_prefix(self, ids: Sequence[int]) -> int:
        """How many leading tokens of ``ids`` are in the cache."""
        count = min(len(ids), len(self._ids))
        held, asked = self._ids[:count], list(ids[:count])
        if held == asked:
            return count
        return next(position for position in range(count) if held[position] != asked[position])

    def extend(self, ids: Sequence[int]) -> None:
        """Declare the next ``len(ids)`` rows valid: the nets that wrote them have finished."""
        self._ids.extend(ids)

    def truncate(self, length: int) -> None:
        """Forget every token from position ``length`` on; rows stay where they are, unseen."""
        del self._ids[length:]

    def rollback(self, count: int) -> None:
        """Forget the last ``count`` tokens, or all where there are fewer."""
        self.truncate(max(0, len(self._ids) - count))

    def clear(self) -> None:
        """Forget every token and zero every row: a NaN in an unseen row would be felt through any mask."""
        self.truncate(0)
        zeros = np.zeros(self.capacity * self.row_bytes, dtype=np.uint8)
        for layer in self._layers:
            self._session.write_bytes(layer.keys, zeros, 0)
            self._session.write_bytes(layer.values, zeros, 0)
