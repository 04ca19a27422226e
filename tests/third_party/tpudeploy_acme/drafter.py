"""A drafter of a third party."""

from __future__ import annotations

from collections.abc import Sequence

from tpudeploy.contracts.drafter import Draft, Drafter, DraftRun


class LastAgain(Drafter):
    """Guesses that the last token comes again."""

    name = "acme-again"
    summary = "the last token again"

    def begin(self) -> DraftRun:
        """Remember one token."""
        return _Run()


class _Run(DraftRun):
    def __init__(self) -> None:
        self._last = 0

    def extend(self, ids: Sequence[int]) -> None:
        self._last = ids[-1]

    def propose(self, limit: int) -> Draft | None:
        return Draft((self._last,) * min(limit, 2))
