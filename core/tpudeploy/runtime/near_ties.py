"""Greedy choices that are too close to tell: made from logits that are what they would be without drafts.

A near tie in a verify pass is first looked at by a decode pass over the cache as it is, which rounds as the decode
passes without drafts do, but for what drafts left in the cache. Where that is still too close, every row that came of
drafts is computed anew. Rows that were seen before and are computed anew tell how far nets really round apart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from tpudeploy.contracts.dtypes import Array
from tpudeploy.runtime.speculation import DraftCounts
from tpudeploy.runtime.token_engine import TokenEngine

MOST_ROWS = 48
"""Rows of logits kept to be compared; one has half a megabyte."""
FEW = 2
"""So many passes are run anew at once: to look first, which may not suffice, would cost as much."""
Choose = Callable[[Array, bool], bool]
"""Chooses the next token from logits (vocab,) that a verify pass (true) or a decode pass computed; whether it could."""


class NearTies:
    """Tells them apart for one answer.

    :param choose: appends to the sequence where it could tell.
    :param ids: the sequence, as it grows.
    """

    def __init__(self, engine: TokenEngine, ids: Sequence[int], choose: Choose, counts: DraftCounts) -> None:
        self._engine = engine
        self._ids = ids
        self._choose = choose
        self._counts = counts
        self._seen: OrderedDict[int, tuple[Array, bool]] = OrderedDict()

    def margin(self, row: Array, *, drafted: bool) -> float:
        """By how much the best of logits (vocab,) after the last token must lead; 0: any lead is certain.

        :param drafted: a verify pass computed them.
        """
        engine = self._engine
        if not drafted and engine.pending == 0:
            return 0.0
        if engine.rounding.wants(drafted=drafted):
            self._seen[len(self._ids) - 1] = (row.copy(), drafted)
            if len(self._seen) > MOST_ROWS:
                self._seen.popitem(last=False)
        return engine.rounding.margin(drafted=drafted)

    def look(self, cancelled: Callable[[], bool]) -> int:
        """Choose what a verify pass left open; the cache holds all but the last token.

        :returns: passes that this has taken.
        """
        engine = self._engine
        if engine.pending <= FEW:
            return self.settle(cancelled)
        if cancelled():
            return 0
        self._counts.looks += 1
        if self._choose(engine.forward(self._ids[-1:])[0], False):
            return 1
        return 1 + self.settle(cancelled)

    def settle(self, cancelled: Callable[[], bool]) -> int:
        """Compute the last token anew, and before it every row that came of drafts; then choose for certain.

        :returns: passes that this has taken.
        """
        engine, spent = self._engine, 0
        engine.reuse(self._ids)
        passes = engine.settle(frozenset(self._seen))
        while not cancelled():
            settled = next(passes, None)
            spent += 1
            if settled is None:
                row = engine.forward(self._ids[-1:])[0]
                self._compare(len(self._ids) - 1, row)
                self._choose(row, False)
                break
            self._counts.recomputed += settled.tokens
            if settled.logits is not None:
                self._compare(settled.last, settled.logits)
        self._seen.clear()
        return spent

    def _compare(self, place: int, settled: Array) -> None:
        seen = self._seen.pop(place, None)
        if seen is not None:
            row, drafted = seen
            self._engine.rounding.compare(row, settled, drafted=drafted)
