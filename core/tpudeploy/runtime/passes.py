"""A pass: one trip of a few tokens through embedding and every layer, in one static shape.

Everything that a pass needs is built once: device tensors, host arrays, bound nets. Running it writes three small
arrays, moves where present keys and values go, and launches. Hidden states alternate between two buffers a chip.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from tpudeploy.contracts.backend import BoundNet, Session, TensorView
from tpudeploy.contracts.dtypes import Array, DType, to_storage
from tpudeploy.contracts.net import MASK_VALUE, NetSet, NetSpec, Stage
from tpudeploy.runtime.kv_cache import KvCache


class Step(Protocol):
    """Something to launch: a bound net, or a hop between chips."""

    def launch(self) -> None:
        """Start it."""


class HostHop:
    """Carries hidden states to another chip, by way of the host."""

    def __init__(self, session: Session, source: TensorView, target: TensorView) -> None:
        self._session = session
        self._source = source
        self._target = target
        self._offset_bytes = source.offset_bytes
        self._states = np.empty(target.shape, dtype=target.dtype.numpy)

    def move_source(self, offset_bytes: int) -> None:
        """Take the states from elsewhere in the source's buffer."""
        self._offset_bytes = offset_bytes

    def launch(self) -> None:
        """Wait for the source, then copy."""
        self._session.sync()
        self._session.read_bytes(self._source.buffer, self._states, self._offset_bytes)
        self._session.write_bytes(self._target.buffer, self._states, self._target.offset_bytes)


class HiddenStates:
    """Two buffers a chip, read and written in turn; the states of a pass lie at the start of one.

    :param rows: tokens of the largest pass.
    """

    def __init__(self, session: Session, nets: NetSet, chips: Iterable[int], rows: int) -> None:
        self._dtype = nets.activation
        self._size = nets.config.hidden_size
        self.row_bytes = self._size * self._dtype.itemsize_bytes
        self._buffers = {
            chip: tuple(session.allocate(rows * self.row_bytes, chip=chip) for _ in range(2))
            for chip in sorted(set(chips))
        }

    def view(self, chip: int, turn: int, rows: int) -> TensorView:
        """The first ``rows`` rows of one buffer, (1, rows, hidden)."""
        return TensorView(self._buffers[chip][turn], (1, rows, self._size), self._dtype)


class AttentionMask:
    """The additive mask of one stage on the host, as it is stored; follows the length of the cache.

    ``values`` is (new, cache + new): of the cache's columns the first ``cached`` are visible, and of the new tokens
    each sees itself and those before it.
    """

    def __init__(self, stage: Stage, dtype: DType) -> None:
        new, self._cache_length = stage.new_tokens, stage.cache_length
        self._hidden = to_storage(np.array([MASK_VALUE]), dtype)[0]
        self.values: Array = np.full((new, self._cache_length + new), self._hidden, dtype=dtype.numpy)
        self.values[:, self._cache_length :][np.tri(new, dtype=bool)] = 0
        self._shown: int | None = None

    def show(self, cached: int) -> bool:
        """Make just the first ``cached`` columns of the cache visible; returns whether values may have changed."""
        shown = self._shown
        if shown == cached:
            return False
        # Unknown until done, so that an interrupt in the middle only costs a full update next time.
        self._shown = None
        start, stop = (0, self._cache_length) if shown is None else (min(shown, cached), max(shown, cached))
        self.values[:, start : max(start, min(stop, cached))] = 0
        self.values[:, max(start, cached) : stop] = self._hidden
        return True

    def written(self, cached: int) -> None:
        """Note that the device has the values of ``cached`` visible columns."""
        self._shown = cached


class Pass:
    """Up to ``stage.new_tokens`` tokens over a cache of up to ``stage.cache_length``.

    :param blocks: the block nets of this stage, one a layer, in order.
    :param positions: (capacity,) int32: the position id of each cache row.
    """

    def __init__(
        self,
        session: Session,
        embedding: NetSpec,
        blocks: Sequence[NetSpec],
        hidden: HiddenStates,
        cache: KvCache,
        positions: Array,
    ) -> None:
        self.stage = blocks[0].stage
        self._session = session
        self._hidden = hidden
        self._cache = cache
        self._positions = positions
        self._mask = AttentionMask(self.stage, blocks[0].input("attention_mask").dtype)
        self._ids = np.zeros(self.stage.new_tokens, dtype=np.int32)
        self._ids_tensor = session.tensor(embedding.input("input_ids"), chip=embedding.chip)
        self._position_tensors = _tensor_by_chip(session, blocks, "position_ids")
        self._mask_tensors = _tensor_by_chip(session, blocks, "attention_mask")
        self._blocks: list[BoundNet] = []
        self._steps: list[Step] = []
        self.output = self._bind(embedding, blocks)
        """Where the last layer leaves its states, (1, new, hidden) from the start of a buffer."""

    def run(self, ids: Sequence[int]) -> None:
        """Launch the pass for ``ids``, which follow the tokens in the cache; the device must be idle.

        The keys and values of the new tokens, and of the padding after them, go to the rows after the cached ones.
        """
        cached = self._cache.length
        self._write_inputs(ids, cached)
        offset = cached * self._cache.row_bytes
        for block in self._blocks:
            block.move_output("present_k", offset)
            block.move_output("present_v", offset)
        for step in self._steps:
            step.launch()

    def _write_inputs(self, ids: Sequence[int], cached: int) -> None:
        write, new = self._session.write_bytes, self.stage.new_tokens
        self._ids[: len(ids)] = ids
        self._ids[len(ids) :] = 0
        write(self._ids_tensor.buffer, self._ids, 0)
        positions = self._positions[cached : cached + new]
        for tensor in self._position_tensors:
            write(tensor.buffer, positions, 0)
        if self._mask.show(cached):
            for tensor in self._mask_tensors:
                write(tensor.buffer, self._mask.values, 0)
            self._mask.written(cached)

    def _bind(self, embedding: NetSpec, blocks: Sequence[NetSpec]) -> TensorView:
        rows, chip, turn = self.stage.new_tokens, embedding.chip, 0
        states = self._hidden.view(chip, turn, rows)
        inputs = {"input_ids": self._ids_tensor}
        self._steps.append(self._session.bind(embedding.name, inputs, {"input_states": states}))
        for layer, net in enumerate(blocks):
            if net.chip != chip:
                chip, turn = net.chip, 0
                arrived = self._hidden.view(chip, turn, rows)
                self._steps.append(HostHop(self._session, states, arrived))
                states = arrived
            turn = 1 - turn
            output = self._hidden.view(chip, turn, rows)
            block = self._bind_block(layer, net, states, output)
            self._blocks.append(block)
            self._steps.append(block)
            states = output
        return states

    def _bind_block(self, layer: int, net: NetSpec, states: TensorView, output: TensorView) -> BoundNet:
        def on_chip(tensors: Sequence[TensorView]) -> TensorView:
            return next(tensor for tensor in tensors if tensor.buffer.chip == net.chip)

        inputs = {
            "input_states": states,
            "position_ids": on_chip(self._position_tensors),
            "attention_mask": on_chip(self._mask_tensors),
        }
        if self.stage.cache_length:
            history = self._cache.views(layer, self.stage.cache_length)
            inputs |= {"history_k": history[0], "history_v": history[1]}
        present_k, present_v = self._cache.views(layer, self.stage.new_tokens)
        outputs = {"output_states": output, "present_k": present_k, "present_v": present_v}
        return self._session.bind(net.name, inputs, outputs)


def _tensor_by_chip(session: Session, blocks: Sequence[NetSpec], name: str) -> tuple[TensorView, ...]:
    """One tensor a chip for an input that all layers of a stage share."""
    nets = {net.chip: net for net in blocks}
    return tuple(session.tensor(net.input(name), chip=chip) for chip, net in sorted(nets.items()))
