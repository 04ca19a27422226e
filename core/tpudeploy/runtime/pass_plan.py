"""Which passes compute a number of tokens at least cost: arithmetic on stages, no device.

A pass is padded to its stage's size and costs the same however few tokens it takes, so 300 tokens may be cheapest as
128 three times, as 256 and 64, or as 512 once. The compiler's cycle model says what each costs.
"""

from __future__ import annotations

from collections.abc import Sequence

from tpudeploy.contracts.bundle import Manifest
from tpudeploy.contracts.net import Stage
from tpudeploy.runtime.pass_cycles import block_cycles

_TAIL_PASSES = 4
"""The last tokens, as many as this many of the largest pass take, are planned exactly; before them only the cost a
token counts. It bounds the work for prompts of any length."""

_READING = 40
_BALANCE = 96
"""Where a bundle tells no cycles: reading a layer's weights takes as long as computing about a hundred tokens, and what
does not depend on their number as forty. It reproduces the ratios of the measured stages (explanation/performance.md)
within a tenth from 64 to 512 tokens."""


def stage_costs(manifest: Manifest, stages: Sequence[Stage]) -> list[int]:
    """What a pass of each stage costs, in a unit that only comparisons know.

    Modelled cycles of all its block nets where the bundle tells those of every one; else a rule of thumb. On several
    chips that share layers the sum counts what runs at once, for all stages alike.
    """
    told = [block_cycles(manifest, stage) for stage in stages]
    known = [cycles for cycles in told if cycles]
    return known if len(known) == len(told) else [guessed_cost(stage) for stage in stages]


def guessed_cost(stage: Stage) -> int:
    """The cost of a stage by rule of thumb, in tokens."""
    return max(stage.new_tokens, _BALANCE) + _READING


class PassPlanner:
    """Chooses among the stages of one bundle.

    :param stages: in which passes exist; of equally good ones the first is taken.
    :param costs: what a pass of each costs, in one unit; positive.
    """

    def __init__(self, stages: Sequence[Stage], costs: Sequence[int]) -> None:
        self._stages = tuple(stages)
        self._costs = tuple(costs)
        self._tail = _TAIL_PASSES * max(stage.new_tokens for stage in stages)
        self._known: tuple[int, list[int]] = (-1, [])

    def plan(self, cached: int, count: int) -> list[int]:
        """The passes for ``count`` tokens that follow ``cached`` ones, as indices of stages, in order.

        Of equally cheap ways the one of fewest passes is taken, large ones first.

        :raises ValueError: no stage has a cache of so many tokens.
        """
        total, taken = cached + count, []
        while count > self._tail:
            best = min(self._able(total - count), key=lambda index: self._costs[index] / self._size(index))
            taken.append(best)
            count -= self._size(best)
        first = self._cheapest(total, count)
        while count > 0:
            taken.append(first[count])
            count -= self._size(first[count])
        return taken

    def first(self, cached: int, count: int) -> int:
        """The first pass of :meth:`plan`."""
        if count == 1:
            return min(self._able(cached), key=lambda index: self._costs[index])
        return self.plan(cached, count)[0]

    def cost(self, cached: int, count: int) -> int:
        """What :meth:`plan` costs."""
        return sum(self._costs[index] for index in self.plan(cached, count))

    @property
    def cheapest(self) -> int:
        """The cost of the cheapest pass."""
        return min(self._costs)

    def _size(self, index: int) -> int:
        return self._stages[index].new_tokens

    def _able(self, cached: int) -> list[int]:
        """Stages whose cache holds ``cached`` tokens."""
        able = [index for index, stage in enumerate(self._stages) if stage.cache_length >= cached]
        if not able:
            raise ValueError(f"no stage has a cache of {cached} tokens")
        return able

    def _cheapest(self, total: int, count: int) -> list[int]:
        """For each number of tokens left, up to ``count``, the first pass of the cheapest way to the end.

        Fewer tokens left need longer caches, for all of ``total`` are there at the end: built from the end backwards.
        Kept for the passes that follow, whose ``total`` is the same.
        """
        if self._known[0] == total and len(self._known[1]) > count:
            return self._known[1]
        costs = [(0, 0)]  # by tokens left: cost and number of passes
        first = [-1]
        for left in range(1, count + 1):
            ways = []
            for index in self._able(total - left):
                used = min(self._size(index), left)
                cost, passes = costs[left - used]
                ways.append((cost + self._costs[index], passes + 1, -used, index))
            cost, passes, _, chosen = min(ways)
            costs.append((cost, passes))
            first.append(chosen)
        self._known = (total, first)
        return first
