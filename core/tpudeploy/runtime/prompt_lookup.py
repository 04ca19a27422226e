"""Prompt lookup: what followed the last few tokens when they stood here before, in the prompt or in the answer.

An answer that summarizes, quotes or edits its prompt repeats long stretches of it. The last tokens are looked up as
n-grams, the longest first; of several places the one that agrees with the sequence furthest back is taken, and of those
that agree as far, the latest. Where a stretch was being copied and the answer has just departed from it, a single token
that occurs a little further on is enough to take it up again: that is what an edit looks like.

Each new token costs a few dictionary operations, whatever the length of the sequence. Memory is bounded by the
sequence: an entry for each n-gram in it, with its latest places.
"""

from __future__ import annotations

from collections.abc import Sequence

from tpudeploy.contracts.drafter import PROMPT_LOOKUP, Draft, Drafter, DraftRun

GRAMS = (3, 2)
"""Lengths of the n-grams, the longest first. Measured on the demo's dialogues: longer ones find nothing more, and a
single token alone is a bad guess."""
PLACES = 8
"""Of how many occurrences of an n-gram the places are kept."""
FURTHEST_BACK = 32
"""How far back agreement is measured."""
REACH = 24
"""How many tokens an edit may leave out of what was being copied."""
_RESUMED = 0
"""Evidence of a draft that takes up a copy; others have the length of their match, in steps of doubling."""


class PromptLookup(Drafter):
    """Drafts from the prompt and the answer so far."""

    name = PROMPT_LOOKUP
    summary = "repeats what followed the same tokens earlier, in prompt and answer"

    def begin(self) -> DraftRun:
        """See :meth:`Drafter.begin`."""
        return LookupRun()


class LookupRun(DraftRun):
    """Prompt lookup over one sequence."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._places: dict[tuple[int, ...], list[int]] = {}
        self._source: int | None = None
        """Where the token that is copied next stands, or stood when copying ended."""

    def extend(self, ids: Sequence[int]) -> None:
        """See :meth:`DraftRun.extend`."""
        for token_id in ids:
            source = self._source
            if source is not None and source < len(self._ids) and self._ids[source] == token_id:
                self._source = source + 1
            self._index_last()
            self._ids.append(token_id)

    def propose(self, limit: int) -> Draft | None:
        """See :meth:`DraftRun.propose`."""
        found = self._longest_match() or self._resumed_copy()
        if found is None:
            return None
        place, evidence = found
        self._source = place
        drafted = self._ids[place : place + limit]
        while len(drafted) < limit:  # the match reaches into its own continuation: it goes round
            drafted += drafted[: limit - len(drafted)]
        return Draft(tuple(drafted), evidence)

    def _index_last(self) -> None:
        """Note the n-grams that end at the last token: what follows them is about to be known."""
        end = len(self._ids)
        for size in GRAMS:
            if end >= size:
                places = self._places.setdefault(tuple(self._ids[end - size :]), [])
                places.append(end)
                del places[:-PLACES]

    def _longest_match(self) -> tuple[int, int] | None:
        """Where what follows the last tokens stood before, and the evidence for it."""
        end = len(self._ids)
        for size in GRAMS:
            places = self._places.get(tuple(self._ids[end - size :])) if end > size else None
            if places:
                length, place = max((self._agreement(place), place) for place in places)
                return place, min(length, FURTHEST_BACK).bit_length()
        return None

    def _agreement(self, place: int) -> int:
        """How many tokens before ``place`` are the last ones of the sequence."""
        ids, count = self._ids, 0
        most = min(place, FURTHEST_BACK)
        while count < most and ids[place - 1 - count] == ids[-1 - count]:
            count += 1
        return count

    def _resumed_copy(self) -> tuple[int, int] | None:
        """The last token, a little further on in what was being copied."""
        if self._source is None or not self._ids:
            return None
        stop = min(self._source + REACH, len(self._ids) - 1)
        try:
            return self._ids.index(self._ids[-1], self._source, stop) + 1, _RESUMED
        except ValueError:
            return None
