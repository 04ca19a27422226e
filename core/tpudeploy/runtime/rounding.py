"""How far the leads of logits move by which nets compute them: presumed at first, then measured while running.

Nets of another width add up the same numbers in another order. What that changes depends on the model's weights, its
depth and its 16-bit type, so no constant is right for all models. But whenever rows are settled, the same row has been
computed twice: in the passes that drafts led to, and in those that there would have been without. The logits' difference
is just what a margin must cover, and there are dozens of leads to look at in every row.
"""

from __future__ import annotations

import math

import numpy as np

from tpudeploy.contracts.dtypes import Array

RIVALS = 63
"""Logits below the best whose leads are compared: those that could ever be chosen instead, and of like size."""
ENOUGH = 24
"""Rows after which what was measured replaces what was presumed."""
SIGMAS = 6.0
"""How many times the root mean square of the changes seen a lead must be."""


class Rounding:
    """Margins for one engine, as shares of the best logit.

    Two kinds of rows are told apart: those of verify passes, and those of decode passes over a cache with rows that
    came of drafts. The latter differ by what is in the cache alone.

    :param presumed: the margin of both, until enough is measured; 0: nets of any width agree to the last bit.
    :param least: a margin is never smaller: one unit in the last place of the best logit and of another.
    """

    def __init__(self, presumed: float, least: float = 0.0) -> None:
        self._presumed = presumed
        self._least = least
        self._rows = {False: 0, True: 0}
        self._squares = {False: 0.0, True: 0.0}

    def margin(self, *, drafted: bool) -> float:
        """By how much the best logit must lead for the choice to be certain.

        :param drafted: the row is a verify pass's.
        """
        kinds = (False, True) if drafted else (False,)
        return max(self._margin(kind) for kind in kinds)

    def wants(self, *, drafted: bool) -> bool:
        """Whether more rows of a kind should be compared."""
        return self._presumed > 0 and self._rows[drafted] < 4 * ENOUGH

    def compare(self, row: Array, settled: Array, *, drafted: bool) -> None:
        """Learn from logits (vocab,) of the same token, as they were and as they are without drafts."""
        count = min(RIVALS + 1, len(settled))
        top = np.argpartition(-settled, count - 1)[:count]
        best = int(np.argmax(settled))
        change = row[top].astype(np.float64) - settled[top]
        leads = (change - (float(row[best]) - float(settled[best]))) / max(1.0, abs(float(settled[best])))
        self._rows[drafted] += 1
        self._squares[drafted] += float(np.square(leads).sum()) / max(count - 1, 1)

    def _margin(self, kind: bool) -> float:
        rows = self._rows[kind]
        if rows < ENOUGH:
            return self._presumed
        return max(self._least, SIGMAS * math.sqrt(self._squares[kind] / rows))


EXACT = Rounding(0.0)
"""Of engines whose nets all agree, or that verify no drafts."""
