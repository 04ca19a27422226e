"""How long the passes take that the engine would launch: the same choice of passes, and the same steps in each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.net import LayerPart, NetSet, NetSpec, Split, Stage
from tpudeploy.estimate.chip import BM1684X, CYCLES_PER_S, HOST_S, ChipModel
from tpudeploy.estimate.costs import NetCosts
from tpudeploy.runtime.pass_plan import PassPlanner
from tpudeploy.runtime.stage_nets import StageNets, find_heads, find_stages


class Times(Value):
    """Seconds, by what takes them; one after the other.

    :param exchanges_s: copies between chips, by way of the host.
    :param host_s: what the host does while the chips wait.
    """

    embedding_s: float = 0.0
    layers_s: float = 0.0
    lm_head_s: float = 0.0
    exchanges_s: float = 0.0
    host_s: float = 0.0

    @property
    def total_s(self) -> float:
        """The sum."""
        return self.embedding_s + self.layers_s + self.lm_head_s + self.exchanges_s + self.host_s

    def __add__(self, other: Times) -> Times:
        return Times(**{name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields})


@dataclass(frozen=True)
class Passes:
    """The passes of a net set, with what they cost.

    :param host_s: seconds of the host in each pass.
    """

    nets: NetSet
    costs: NetCosts
    stages: tuple[StageNets, ...]
    heads: dict[int, tuple[NetSpec, ...]]
    planner: PassPlanner
    host_s: float = HOST_S
    chip: ChipModel = BM1684X

    @classmethod
    def of(cls, nets: NetSet, costs: NetCosts, *, host_s: float = HOST_S) -> Passes:
        """Find the stages. :raises BundleError: the net set cannot run."""
        stages = find_stages(nets)
        shapes = [own.stage for own in stages]
        sums = dict.fromkeys(shapes, 0.0)
        for net in nets.nets:
            if net.kind.is_block:
                sums[net.stage] += costs[net.name].seconds
        # As the engine sums cycles, and as finely: it compares whole numbers.
        planner = PassPlanner(shapes, [max(1, round(sums[shape] * CYCLES_PER_S)) for shape in shapes])
        return cls(nets, costs, stages, find_heads(nets), planner, host_s)

    def plan(self, cached: int, count: int) -> Iterator[Stage]:
        """The stages of the passes that the engine takes for ``count`` tokens over ``cached`` in the cache."""
        return (self.stages[index].stage for index in self.planner.plan(cached, count))

    def one(self, cached: int, count: int) -> Stage:
        """The stage of the first of them."""
        return self.stages[self.planner.first(cached, count)].stage

    def launched(self, stage: Stage, rows: int) -> tuple[NetSpec, ...]:
        """The nets of one pass, and of the output layer for ``rows`` tokens (0: none) after it."""
        own = self._nets(stage)
        return (*own.embeddings, *(net for layer in own.layers for net in layer), *(self.heads[rows] if rows else ()))

    def time(self, stage: Stage, rows: int) -> Times:
        """Seconds of one pass, and of the output layer for ``rows`` tokens (0: none) after it."""
        own = self._nets(stage)
        divided = self.nets.split is Split.TENSOR
        head = self.heads[rows] if rows else ()
        return Times(
            embedding_s=self._together(own.embeddings),
            layers_s=sum(self._layer(nets) for nets in own.layers),
            lm_head_s=self._together(head),
            exchanges_s=self._exchanges(own) if divided else self._hops(own, head),
            host_s=self.host_s,
        )

    def _nets(self, stage: Stage) -> StageNets:
        return next(nets for nets in self.stages if nets.stage == stage)

    def _together(self, nets: Sequence[NetSpec]) -> float:
        """Nets on different chips, at once."""
        return max((self.costs[net.name].seconds for net in nets), default=0.0)

    def _layer(self, nets: Sequence[NetSpec]) -> float:
        parts = (LayerPart.WHOLE, LayerPart.ATTENTION, LayerPart.FFN)
        return sum(self._together([net for net in nets if net.part is part]) for part in parts)

    def _exchanges(self, nets: StageNets) -> float:
        """One after the embedding and two a layer; each chip's partial sum goes to the host and to every other chip."""
        chips = self.nets.chips
        copies = chips + chips * (chips - 1)
        return (1 + 2 * len(nets.layers)) * copies * self._copy(nets.stage.new_tokens)

    def _hops(self, nets: StageNets, head: Sequence[NetSpec]) -> float:
        """Where layers follow each other over chips: to the host and to the next chip, wherever the chip changes."""
        order = [net for layer in (nets.embeddings, *nets.layers) for net in layer]
        hops = sum(before.chip != after.chip for before, after in pairwise(order))
        seconds = 2 * hops * self._copy(nets.stage.new_tokens)
        if head and head[0].chip != order[-1].chip:
            seconds += 2 * self._copy(head[0].stage.new_tokens)
        return seconds

    def _copy(self, rows: int) -> float:
        size = rows * self.nets.config.hidden_size * self.nets.activation.itemsize_bytes
        return self.chip.copy_s + size / self.chip.link
