"""Running single nets of a loaded bundle."""

from __future__ import annotations

from collections.abc import Mapping

from tpudeploy.contracts.backend import Buffer, Session, TensorView
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.net import NetSpec, TensorSpec


class NetBench:
    """Runs nets one at a time over the same few buffers, one a tensor name and chip, as large as the largest needs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._sizes: dict[tuple[str, int], int] = {}
        for net in session.manifest.nets.nets:
            for spec in (*net.inputs, *net.outputs):
                key = (spec.name, net.chip)
                self._sizes[key] = max(self._sizes.get(key, 0), spec.size_bytes)
        self._buffers: dict[tuple[str, int], Buffer] = {}

    def run(self, net: NetSpec, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """Run one net.

        :param inputs: an array a net's input, in numbers; each is rounded to the input's element type.
        :returns: the outputs in the net's order, floats as float32.
        :raises BackendError: no room on the device, or the net failed.
        """
        given = {spec.name: self._view(spec, net.chip) for spec in net.inputs}
        wanted = {spec.name: self._view(spec, net.chip) for spec in net.outputs}
        for name, view in given.items():
            self._session.write(view, inputs[name])
        self._session.bind(net.name, given, wanted).launch()
        return tuple(self._session.read(wanted[spec.name]) for spec in net.outputs)

    def _view(self, spec: TensorSpec, chip: int) -> TensorView:
        key = (spec.name, chip)
        if key not in self._buffers:
            self._buffers[key] = self._session.allocate(self._sizes[key], chip=chip)
        return TensorView(self._buffers[key], spec.shape, spec.dtype)
