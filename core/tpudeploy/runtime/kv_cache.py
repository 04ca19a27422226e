"""The KV cache: one buffer of keys and one of values a layer, and the token ids whose rows they hold.

A row is what one token adds to one layer: ``kv_heads * head_dim`` elements. Where layers are divided over several
chips, each has a buffer for the heads that it computes. Rows below :attr:`KvCache.length` are
valid; whatever lies above is never seen (the attention mask hides it) and is overwritten by the tokens to come. A
padded pass writes all of its rows, so the buffers have more rows than tokens can ever be valid.

Rows that a verify pass wrote are a rounding error away from those that decode passes would have written, and so are all
that were computed over them. The cache therefore knows from which row on that is so, and in which passes the tokens
would have been computed without drafts: whoever needs just those rows can have them made again.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpudeploy.contracts.backend import Buffer, Session, TensorView
from tpudeploy.contracts.net import NetSpec
from tpudeploy.runtime.kv_rows import CacheState, Piece, Rows


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer on one chip, each (capacity, kv_heads, head_dim).

    :param row_shape: (kv_heads, head_dim).
    """

    keys: Buffer
    values: Buffer
    row_shape: tuple[int, ...]
    row_bytes: int


class KvCache:
    """Device rows of every layer, and which tokens they belong to.

    :param layers: for each layer, the nets that keep keys and values, one a chip.
    :param capacity: rows of each buffer.
    """

    def __init__(self, session: Session, layers: Sequence[Sequence[NetSpec]], capacity: int) -> None:
        self._session = session
        self.capacity = capacity
        self._parts = {(index, net.chip): self._allocate(net) for index, nets in enumerate(layers) for net in nets}
        self.dtype = layers[0][0].output("present_k").dtype
        self._ids: list[int] = []
        self._starts: list[int] = []  # of the passes, but one a token where drafts were verified
        self._settled = 0
        self.revision = 0
        """Another number after every change of which tokens are held; counted before, should it be interrupted."""
        self.copied = 0
        """How many leading rows are still those that somebody copied and noted here."""

    def _allocate(self, net: NetSpec) -> LayerCache:
        row = net.output("present_k")
        row_bytes = row.size_bytes // row.shape[1]
        size = self.capacity * row_bytes
        keys, values = (self._session.allocate(size, chip=net.chip) for _ in range(2))
        return LayerCache(keys, values, row.shape[2:], row_bytes)

    @property
    def length(self) -> int:
        """Tokens whose rows are valid."""
        return len(self._ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens whose rows are valid, in order."""
        return tuple(self._ids)

    @property
    def settled(self) -> int:
        """How many leading rows are just what they would be had no token ever been drafted."""
        return self._settled

    @property
    def state(self) -> CacheState:
        """What is known of the tokens."""
        return CacheState(tuple(self._ids), tuple(self._starts), self._settled)

    @property
    def pending(self) -> int:
        """Passes that would make all other rows so."""
        if self._settled == len(self._ids):
            return 0
        return 1 + len(self._starts) - bisect_right(self._starts, self._settled)

    def next_pass(self, start: int) -> int:
        """Where the pass that began with row ``start`` ends."""
        later = bisect_right(self._starts, start)
        return self._starts[later] if later < len(self._starts) else self.length

    def row_bytes(self, layer: int, chip: int) -> int:
        """Bytes that one token adds to the keys (or values) of a layer on a chip."""
        return self._parts[layer, chip].row_bytes

    def row_sizes(self) -> dict[tuple[int, int], int]:
        """:meth:`row_bytes` of each layer and chip."""
        return {place: part.row_bytes for place, part in self._parts.items()}

    def views(self, layer: int, chip: int, rows: int) -> tuple[TensorView, TensorView]:
        """The first ``rows`` rows of a layer's keys and values on a chip, each (1, rows, kv_heads, head_dim)."""
        buffers = self._parts[layer, chip]
        shape = (1, rows, *buffers.row_shape)
        return (
            TensorView(buffers.keys, shape, self.dtype),
            TensorView(buffers.values, shape, self.dtype),
        )

    def common_prefix(self, ids: Sequence[int], known: int = 0) -> int:
        """How many leading tokens of ``ids`` are in the cache.

        :param known: so many are not compared: of the first of them, the cache holds no others.
        """
        count = min(len(ids), len(self._ids))
        held, asked = self._ids[known:count], list(ids[known:count])
        if held == asked:
            return count
        return known + next(place for place, token in enumerate(held) if token != asked[place])

    def extend(self, ids: Sequence[int], *, drafted: bool = False) -> None:
        """Declare the next ``len(ids)`` rows valid: the nets that wrote them have finished.

        :param drafted: by one pass, of tokens that would have taken a pass each.
        """
        start = len(self._ids)
        self.revision += 1
        self._ids.extend(ids)
        if drafted:
            self._starts.extend(range(start, len(self._ids)))
            return
        self._starts.append(start)
        if self._settled == start:
            self._settled = len(self._ids)

    def truncate(self, length: int) -> None:
        """Forget every token from position ``length`` on; rows stay where they are, unseen."""
        if length >= len(self._ids):
            return
        self.revision += 1
        del self._ids[length:]
        del self._starts[bisect_left(self._starts, length) :]
        self._settled = min(self._settled, length)
        self.copied = min(self.copied, length)

    def read_rows(self, start: int) -> Rows:
        """Copy the rows from position ``start`` on to the host.

        :raises BackendError: a device failed.
        :raises MemoryError: the host has no room.
        """
        self._session.sync()
        rows = []
        for part in self._parts.values():
            for buffer in (part.keys, part.values):
                rows.append(np.empty((self.length - start, part.row_bytes), dtype=np.uint8))
                self._session.read_bytes(buffer, rows[-1], start * part.row_bytes)
        return rows

    def restore(self, state: CacheState, pieces: Sequence[Piece]) -> None:
        """Hold the tokens of ``state``, whose rows :meth:`read_rows` once copied.

        Interrupted, the cache holds those that it had and that come before the pieces.

        :param pieces: rows up to the end, one after the other; those before them are in the cache.
        :raises BackendError: a device failed.
        """
        self.truncate(pieces[0].start if pieces else len(state.ids))
        self._session.sync()
        for piece in pieces:
            rows = iter(piece.rows)
            for part in self._parts.values():
                for buffer in (part.keys, part.values):
                    self._session.write_bytes(buffer, next(rows), piece.start * part.row_bytes)
        self.revision += 1
        self._starts, self._ids, self._settled = list(state.starts), list(state.ids), state.settled

    def rollback(self, count: int) -> None:
        """Forget the last ``count`` tokens, or all where there are fewer."""
        self.truncate(max(0, len(self._ids) - count))

    def clear(self) -> None:
        """Forget every token and zero every row: a NaN in an unseen row would be felt through any mask."""
        self.truncate(0)
        for part in self._parts.values():
            zeros = np.zeros(self.capacity * part.row_bytes, dtype=np.uint8)
            self._session.write_bytes(part.keys, zeros, 0)
            self._session.write_bytes(part.values, zeros, 0)
