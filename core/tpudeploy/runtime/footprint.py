"""What an engine allocates on its devices, found by building one on devices that only count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tpudeploy.contracts.backend import BoundNet, Buffer, MemoryReport, Session, TensorView
from tpudeploy.contracts.bundle import BundleFormat, CompilerInfo, Manifest
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.loadable import Loadable
from tpudeploy.contracts.net import NetSet, NetSpec
from tpudeploy.runtime.engine import Engine


@dataclass(frozen=True)
class Footprint:
    """Buffers of an engine on one chip, in bytes.

    :param kv_bytes: keys and values.
    :param other_bytes: everything else: ids, positions, masks, hidden states, logits.
    """

    kv_bytes: int
    other_bytes: int


def footprints(nets: NetSet) -> tuple[Footprint, ...]:
    """Buffers of each chip of a net set.

    :raises BundleError: the net set cannot run.
    """
    session = _CountingSession(nets)
    cache = Engine(session).cache
    kv = [0] * nets.chips
    for (_, chip), rows in cache.row_sizes().items():
        kv[chip] += 2 * cache.capacity * rows
    return tuple(Footprint(kv[chip], session.counts[chip] - kv[chip]) for chip in range(nets.chips))


class _CountedBuffer(Buffer):
    def __init__(self, size_bytes: int, chip: int) -> None:
        self.size_bytes = size_bytes
        self.chip = chip


class _CountedNet(BoundNet):
    def launch(self) -> None:
        raise AssertionError("nets that were only counted do not run")

    def move_output(self, name: str, offset_bytes: int) -> None: ...

    def move_input(self, name: str, offset_bytes: int) -> None: ...


class _CountingSession(Session):
    """Adds up what is allocated, and forgets what is written."""

    def __init__(self, nets: NetSet) -> None:
        self.loaded = Loadable(format=BundleFormat.BMODEL, nets=nets.nets, net_files={}, chips=nets.chips, size_bytes=0)
        # All that an engine reads of it; which passes it would choose does not matter.
        only: dict[str, Any] = {"nets": nets, "compiler": CompilerInfo(name="", version="")}
        self._manifest = Manifest.model_construct(**only)
        self.counts = [0] * nets.chips

    def allocate(self, size_bytes: int, *, chip: int = 0) -> Buffer:
        self.counts[chip] += size_bytes
        return _CountedBuffer(size_bytes, chip)

    def write_bytes(self, buffer: Buffer, data: Array, offset_bytes: int) -> None: ...

    def read_bytes(self, buffer: Buffer, out: Array, offset_bytes: int) -> None: ...

    def sync(self) -> None: ...

    def memory(self) -> MemoryReport:
        return MemoryReport(weights_bytes=0, buffers_bytes=sum(self.counts))

    def close(self) -> None: ...

    def _bind(self, net: NetSpec, inputs: Mapping[str, TensorView], outputs: Mapping[str, TensorView]) -> BoundNet:
        return _CountedNet()
