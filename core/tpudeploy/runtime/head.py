"""The output layer: hidden states that a pass left on the device, to logits on the host."""

from __future__ import annotations

from tpudeploy.contracts.backend import Session, TensorView
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.net import NetSpec
from tpudeploy.runtime.passes import HostHop


class Head:
    """The output layer for a fixed number of tokens.

    :param states: where the last layer leaves its states, (1, rows, hidden) from the start of its buffer.
    """

    def __init__(self, session: Session, net: NetSpec, states: TensorView) -> None:
        self.rows = net.stage.new_tokens
        self._session = session
        self._row_bytes = states.size_bytes // states.shape[1]
        self._logits = session.tensor(net.output("logits"), chip=net.chip)
        source = TensorView(states.buffer, net.input("hidden_states").shape, states.dtype)
        self._hop: HostHop | None = None
        if net.chip != states.buffer.chip:
            arrived = session.tensor(net.input("hidden_states"), chip=net.chip)
            self._hop, source = HostHop(session, source, arrived), arrived
        self._net = session.bind(net.name, {"hidden_states": source}, {"logits": self._logits})

    def read(self, first_row: int) -> Array:
        """Compute and read the logits of ``rows`` tokens from ``first_row`` of the states on.

        :returns: (rows, vocab) float32.
        :raises BackendError: a net failed.
        """
        offset = first_row * self._row_bytes
        if self._hop is None:
            self._net.move_input("hidden_states", offset)
        else:
            self._hop.move_source(offset)
            self._hop.launch()
        self._net.launch()
        logits: Array = self._session.read(self._logits)[0]
        return logits
