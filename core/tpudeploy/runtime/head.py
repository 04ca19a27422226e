"""The output layer: hidden states that a pass left on the device, to logits on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tpudeploy.contracts.backend import BoundNet, Session, TensorView
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.net import NetSpec
from tpudeploy.runtime.hidden import HostHop
from tpudeploy.runtime.wiring import ChipTensors


class Head:
    """The output layer for a fixed number of tokens.

    :param nets: one, or where layers are divided one a chip, each with the logits of its rows of the vocabulary.
    :param states: where the last layer leaves what the output layer reads, (1, rows, hidden) from the start of its
        buffers.
    """

    def __init__(self, session: Session, nets: Sequence[NetSpec], states: ChipTensors) -> None:
        self.rows = nets[0].stage.new_tokens
        self._session = session
        self._row_bytes = 0
        self._hops: list[HostHop] = []
        self._moving: list[tuple[BoundNet, str]] = []
        self._logits: list[TensorView] = []
        self._nets = [self._bind(net, states) for net in nets]

    def _bind(self, net: NetSpec, states: ChipTensors) -> BoundNet:
        given = states.get(net.chip)
        arrives = given is None
        if given is None:
            given = next(iter(states.values()))
        inputs = {}
        for spec in net.inputs:
            source = TensorView(given[spec.name].buffer, spec.shape, spec.dtype)
            self._row_bytes = source.size_bytes // spec.shape[1]
            if arrives:
                target = self._session.tensor(spec, chip=net.chip)
                self._hops.append(HostHop(self._session, source, target))
                source = target
            inputs[spec.name] = source
        logits = self._session.tensor(net.output("logits"), chip=net.chip)
        self._logits.append(logits)
        bound = self._session.bind(net.name, inputs, {"logits": logits})
        if not arrives:
            self._moving += [(bound, spec.name) for spec in net.inputs]
        return bound

    def read(self, first_row: int, count: int | None = None) -> Array:
        """Compute the logits of ``rows`` tokens from ``first_row`` of the states on, and read those of the first ones.

        :param count: how many to read; None: all.
        :returns: (count, vocab) float32.
        :raises BackendError: a net failed.
        """
        offset = first_row * self._row_bytes
        for net, name in self._moving:
            net.move_input(name, offset)
        for hop in self._hops:
            hop.move_source(offset)
            hop.launch()
        for net in self._nets:
            net.launch()
        parts = [self._session.read(_leading(logits, count or self.rows))[0] for logits in self._logits]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _leading(logits: TensorView, rows: int) -> TensorView:
    """The first rows of logits (1, rows, vocab)."""
    return TensorView(logits.buffer, (1, rows, logits.shape[2]), logits.dtype)
