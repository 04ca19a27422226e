"""Device memory of a bmodel that others made: hidden states, and keys and values with the slots of their tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tpudeploy.contracts.backend import Buffer, Session, TensorView
from tpudeploy.contracts.net import TensorSpec
from tpudeploy.runtime.foreign.layout import ForeignLayout


def view(buffer: Buffer, spec: TensorSpec, shape: tuple[int, ...] | None = None, offset_bytes: int = 0) -> TensorView:
    """A tensor as a net wants it, somewhere in a buffer."""
    return TensorView(buffer, spec.shape if shape is None else shape, spec.dtype, offset_bytes)


class States:
    """Two buffers of hidden states, which layers read and write in turn.

    :param rows: tokens that each can hold.
    """

    def __init__(self, session: Session, layout: ForeignLayout, rows: int) -> None:
        self.row_bytes = layout.hidden_size * layout.states_dtype.itemsize_bytes
        self.buffers = tuple(session.allocate(rows * self.row_bytes) for _ in range(2))


class ForeignCache:
    """Keys and values on the device, the tokens that they belong to, and the slot of each token.

    Where decode nets return one row, a token's slot is its position. Where they return the whole cache, moved on by
    one (``layout.slides``), there are two sets of buffers, read and written in turn, and each token's slot is one less
    after every step. What is in slots of no token is hidden by the mask.

    :param spare_rows: rows beyond the cache, which a padded pass may write.
    """

    def __init__(self, session: Session, layout: ForeignLayout, spare_rows: int) -> None:
        self._session = session
        self._slides = layout.slides
        self.length_max = layout.cache_length
        self._size_bytes = layout.kv.token_bytes(layout.cache_length + spare_rows)
        self._sets = tuple(
            tuple(
                (session.allocate(self._size_bytes), session.allocate(self._size_bytes)) for _ in range(layout.layers)
            )
            for _ in range(2 if layout.slides else 1)
        )
        self.current = 0
        """Which set of buffers holds the tokens."""
        self.revision = 0
        """Another number after every change of which tokens are held; counted before, should it be interrupted."""
        self.ids: list[int] = []
        self.slots: list[int] = []

    def buffers(self, turn: int, layer: int) -> tuple[Buffer, Buffer]:
        """Keys and values of a layer, in the set of that turn."""
        return self._sets[turn % len(self._sets)][layer]

    @property
    def steps_left(self) -> int:
        """How many tokens decode nets can add before a token that is needed would be lost."""
        if self._slides:
            return self.slots[0] if self.slots else self.length_max
        return self.length_max - len(self.slots)

    def common_prefix(self, ids: Sequence[int], known: int = 0) -> int:
        """How many leading tokens of ``ids`` are in the cache; the first ``known`` are not compared."""
        count = min(len(ids), len(self.ids))
        return next((place for place in range(known, count) if self.ids[place] != ids[place]), count)

    def truncate(self, length: int) -> None:
        """Forget tokens from position ``length`` on; their rows stay, hidden."""
        if length < len(self.ids):
            self.revision += 1
            del self.ids[length:]
            del self.slots[length:]

    def first_slot(self, count: int) -> int:
        """Where several tokens go at once: after those that are there, or to the end of an empty cache that slides."""
        return self.length_max - count if self._slides else len(self.slots)

    def extend(self, ids: Sequence[int], first_slot: int) -> None:
        """Note tokens whose rows were written from a slot on."""
        self.revision += 1
        self.ids.extend(ids)
        self.slots.extend(range(first_slot, first_slot + len(ids)))

    def step(self, token_id: int) -> None:
        """Note the token that a decode net added."""
        if self._slides:
            self.slots = [slot - 1 for slot in self.slots]
            self.current = 1 - self.current
        self.extend([token_id], self.length_max - 1 if self._slides else len(self.slots))

    def clear(self) -> None:
        """Forget every token and zero every row: what is no number would be felt through any mask."""
        self.truncate(0)
        zeros = np.zeros(self._size_bytes, dtype=np.uint8)
        for layers in self._sets:
            for pair in layers:
                for buffer in pair:
                    self._session.write_bytes(buffer, zeros, 0)
