"""What each net of a set costs: as its compiler said, or by the roofline where it said nothing."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.bundle import CompilerInfo
from tpudeploy.contracts.net import NetSet, NetSpec
from tpudeploy.contracts.quant import QuantScheme
from tpudeploy.estimate.chip import BM1684X, CYCLES_PER_S, ChipModel
from tpudeploy.estimate.roofline import between_s, load_s, products_s, roofline_s
from tpudeploy.estimate.work import Work, net_work


class Source(str, Enum):
    """Where a cost comes from, the best first."""

    PROFILE = "profile"
    CYCLES = "cycles"
    """As a profile, without the split by engine: bundles of older versions."""
    ROOFLINE = "roofline"


class NetCost(Value):
    """One launch of a net.

    :param seconds: from its start to its end.
    :param dma_s: in which bytes move, and ``arithmetic_s`` in which is computed; the two overlap.
    :param moved_bytes: all traffic of device memory.
    :param work: what it has to do at least.
    """

    source: Source
    seconds: float
    dma_s: float
    arithmetic_s: float
    moved_bytes: int
    work: Work


NetCosts = Mapping[str, NetCost]
"""By the name of the net."""


def net_costs(
    nets: NetSet, scheme: QuantScheme, compiler: CompilerInfo | None = None, chip: ChipModel = BM1684X
) -> NetCosts:
    """The cost of every net.

    :param scheme: how weights and activations are stored on the chip.
    :param compiler: what a bundle says of its compiler; None where nothing is compiled yet.
    """
    by_pattern: dict[tuple[str, int], NetCost] = {}
    costs = {}
    for net in nets.nets:
        key = (net.pattern, compiler.cycles.get(net.name, 0) if compiler else 0)
        if key not in by_pattern:
            by_pattern[key] = _cost(net, nets, scheme, compiler, chip)
        costs[net.name] = by_pattern[key]
    return costs


def _cost(net: NetSpec, nets: NetSet, scheme: QuantScheme, compiler: CompilerInfo | None, chip: ChipModel) -> NetCost:
    work = net_work(net, nets, scheme)
    modelled = NetCost(
        source=Source.ROOFLINE,
        seconds=roofline_s(net, work, nets.config, scheme, chip),
        dma_s=load_s(work, chip) + between_s(work, chip),
        arithmetic_s=products_s(work, scheme.activation, chip),
        moved_bytes=work.needed_bytes + work.activation_bytes + work.score_bytes,
        work=work,
    )
    # No net takes no time: zero means that nobody knows.
    cycles = compiler.cycles.get(net.name, 0) if compiler else 0
    profile = compiler.profiles.get(net.pattern) if compiler else None
    if profile is not None and profile.total_cycles:
        return NetCost(
            source=Source.PROFILE,
            seconds=(cycles or profile.total_cycles) / CYCLES_PER_S,
            dma_s=profile.dma_cycles / CYCLES_PER_S,
            arithmetic_s=profile.arithmetic_cycles / CYCLES_PER_S,
            moved_bytes=profile.moved_bytes,
            work=work,
        )
    if cycles:
        return modelled.model_copy(update={"source": Source.CYCLES, "seconds": cycles / CYCLES_PER_S})
    return modelled
