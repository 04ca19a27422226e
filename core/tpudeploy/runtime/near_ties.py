"""Greedy choices that are too close to tell: made from logits that are what they would be without drafts.

Every row that came of drafts is computed anew for that, in the passes that would have computed it without them. A
decode pass over the cache as it is would be no cheaper way out: what drafts leave in the cache moves logits no less
than the verify net itself does, be it one row or a hundred (docs/explanation/speculation.md). Rows that are computed
anew have been seen before; comparing them tells how far nets really round apart, and so how close is too close.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from tpudeploy.contracts.dtypes import Array
from tpudeploy.runtime.speculation import DraftCounts
from tpudeploy.runtime.token_engine import TokenEngine

MOST_ROWS = 48
"""Rows of logits kept to be compared; one has half a megabyte."""
AHEAD = 64
"""So many more tokens are reckoned with when it is decided whether to settle before there is a near tie."""
Choose = Callable[[Array], bool]
"""Chooses the next token for certain from logits (vocab,)."""


class NearTies:
    """Tells them apart for one answer.

    :param ids: the sequence, as it grows.
    """

    def __init__(self, engine: TokenEngine, ids: Sequence[int], counts: DraftCounts) -> None:
        self._engine = engine
        self._ids = ids
        self._counts = counts
        self._seen: OrderedDict[int, Array] = OrderedDict()

    def margin(self, row: Array, place: int, *, drafted: bool) -> float:
        """By how much the best of logits (vocab,) must lead, as a share of it; 0: any lead is certain.

        :param place: that of the token after which they are.
        :param drafted: a verify pass computed them.
        """
        engine = self._engine
        unsettled = engine.pending > 0
        if not unsettled and not drafted:
            return 0.0
        if unsettled and engine.rounding.wants_rows:
            self._seen[place] = row.copy()
            if len(self._seen) > MOST_ROWS:
                self._seen.popitem(last=False)
        return engine.rounding.margin

    def is_due(self) -> bool:
        """Whether to settle before decode passes go on, though nothing is close now.

        It costs the passes that are pending. A near tie later costs these as well, and all passes until then.
        """
        engine = self._engine
        pending, rate = engine.pending, engine.rounding.tie_rate
        if not pending or not rate:
            return False
        chance = 1 - (1 - rate) ** AHEAD
        return pending * (1 - chance) < chance * min(1 / rate, AHEAD / 2)

    def settle(self, choose: Choose | None, cancelled: Callable[[], bool]) -> int:
        """Compute every row anew that came of drafts, and the last token after them; then choose.

        :param choose: None where there is nothing to choose yet, and the last token has not been computed.
        :returns: passes that this has taken.
        """
        engine, spent = self._engine, 0
        engine.reuse(self._ids)
        passes = engine.settle(frozenset(self._seen))
        while not cancelled():
            settled = next(passes, None)
            if settled is None:
                if choose is not None:
                    spent += 1
                    row: Array = engine.forward(self._ids[-1:])[0]
                    self._compare(len(self._ids) - 1, row)
                    choose(row)
                break
            spent += 1
            self._counts.recomputed += settled.tokens
            if settled.logits is not None:
                self._compare(settled.last, settled.logits)
        self._seen.clear()
        self._counts.settled += 1
        return spent

    def _compare(self, place: int, settled: Array) -> None:
        row = self._seen.pop(place, None)
        if row is not None:
            self._engine.rounding.compare(row, settled)
