"""How far the leads of logits move by which nets compute them: presumed at first, then measured while running.

Nets of another width add up the same numbers in another order. What that changes depends on the model's weights, its
depth and its 16-bit type, so no constant is right for all models. But whenever rows are settled, the same row has been
computed twice: in the passes that drafts led to, and in those that there would have been without. How the logits differ
is just what a margin must cover, and there are dozens of leads to look at in every row.
"""

from __future__ import annotations

import math

import numpy as np

from tpudeploy.contracts.dtypes import Array

RIVALS = 63
"""Logits below the best whose leads are compared: those that could ever be chosen instead, and of like size."""
ENOUGH = 8
"""Rows after which what was measured replaces what was presumed."""
MOST = 192
"""Rows after which no more are compared."""
FEW_CHOICES = 50
"""Without a near tie among so many choices, nothing is known of how often there is one."""
SIGMAS = 6.0
"""A lead must be so many times the root mean square of the changes that were seen,"""
OF_LARGEST = 1.5
"""and so many times the largest."""


class Rounding:
    """The margin of one engine, as a share of the best logit.

    :param presumed: the margin until enough is measured; 0: nets of any width agree to the last bit.
    :param least: it never becomes smaller than this.
    """

    def __init__(self, presumed: float, least: float = 0.0) -> None:
        self._presumed = presumed
        self._least = least
        self._rows = 0
        self._squares = 0.0
        self._largest = 0.0
        self._choices = 0
        self._near_ties = 0

    @property
    def margin(self) -> float:
        """By how much the best logit must lead for the choice to be certain."""
        if self._rows < ENOUGH:
            return max(self._presumed, OF_LARGEST * self._largest)
        return max(self._least, SIGMAS * math.sqrt(self._squares / self._rows), OF_LARGEST * self._largest)

    @property
    def wants_rows(self) -> bool:
        """Whether more rows should be compared."""
        return self._presumed > 0 and self._rows < MOST

    @property
    def tie_rate(self) -> float:
        """Share of the choices by the present margin that were too close to tell."""
        return self._near_ties / (self._choices + FEW_CHOICES)

    def chose(self, *, near_tie: bool) -> None:
        """A choice was made by the margin, or could not be."""
        self._choices += 1
        self._near_ties += near_tie

    def compare(self, row: Array, settled: Array) -> None:
        """Learn from logits (vocab,) of the same token, as they were over a cache with drafted rows, and without."""
        count = min(RIVALS + 1, len(settled))
        top = np.argpartition(-settled, count - 1)[:count]
        best = int(np.argmax(settled))
        change = row[top].astype(np.float64) - settled[top]
        leads = (change - (float(row[best]) - float(settled[best]))) / max(1.0, abs(float(settled[best])))
        self._rows += 1
        if self._rows == ENOUGH:
            self._choices = self._near_ties = 0  # they were by another margin
        self._squares += float(np.square(leads).sum()) / max(count - 1, 1)
        self._largest = max(self._largest, float(np.abs(leads).max()))


EXACT = Rounding(0.0)
"""Of engines whose nets all agree, or that verify no drafts."""
