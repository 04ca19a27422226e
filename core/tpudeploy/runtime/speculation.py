"""Drafts for one answer: asked of a drafter, checked, and let through where they are worth a pass.

A drafter may come from anybody. One that fails or offers what cannot be a draft is not asked again for this answer, and
:attr:`Speculation.problem` says why; the answer goes on without it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tpudeploy.contracts.drafter import Draft, Drafter, DraftRun
from tpudeploy.runtime.draft_gate import DraftGate

T = TypeVar("T")
MOST_CLASSES = 64
"""Classes of evidence that are told apart; larger ones count as the last."""


@dataclass
class DraftCounts:
    """What has become of drafts.

    :param passes: passes after the first token.
    :param verify_passes: those of them that verified a draft.
    :param drafted: tokens of those drafts.
    :param accepted: those of them that were right.
    :param settled: how often two near equals had to be told apart.
    :param recomputed: tokens that were computed once more for that.
    """

    passes: int = 0
    verify_passes: int = 0
    drafted: int = 0
    accepted: int = 0
    settled: int = 0
    recomputed: int = 0


class Speculation:
    """One answer's drafts.

    :param prompt_ids: the sequence so far.
    :param vocab_size: ids must lie below it.
    :param extra: see :class:`DraftGate`.
    """

    def __init__(self, drafter: Drafter, prompt_ids: Sequence[int], vocab_size: int, extra: float | None) -> None:
        self.problem = ""
        self._name = getattr(drafter, "name", type(drafter).__name__)
        self._vocab_size = vocab_size
        self._gate = DraftGate(extra)
        self._run: DraftRun | None = None
        self._run = self._try(drafter.begin)
        self.extend(prompt_ids)

    def extend(self, ids: Sequence[int]) -> None:
        """The sequence has grown."""
        run = self._run
        if run is not None:
            self._try(lambda: run.extend(ids))

    def propose(self, limit: int) -> Draft | None:
        """A draft of at most ``limit`` tokens that is worth a verify pass."""
        run = self._run
        if run is None or limit < 1:
            return None
        draft = self._try(lambda: self._checked(run.propose(limit), limit))
        return draft if draft is not None and self._gate.wants(draft.evidence, len(draft.ids)) else None

    def decoded(self, seconds: float) -> None:
        """A pass of one token was run."""
        self._gate.decoded(seconds)

    def verified(self, draft: Draft, accepted: int, seconds: float) -> None:
        """A draft was checked."""
        self._gate.verified(draft.evidence, accepted, seconds)
        run = self._run
        if run is not None:
            self._try(lambda: run.judge(draft, accepted))

    def recomputed(self, passes: int) -> None:
        """Passes were spent to tell two near equals apart."""
        self._gate.recomputed(passes)

    def _checked(self, draft: Draft | None, limit: int) -> Draft | None:
        if draft is None:
            return None
        if not isinstance(draft, Draft) or not isinstance(draft.evidence, int):
            raise TypeError(f"a draft must be a Draft or None, not {draft!r:.80}")
        ids = tuple(map(operator.index, draft.ids))
        if len(ids) > limit:
            raise ValueError(f"it drafted {len(ids)} tokens where {limit} can be checked")
        if ids and not 0 <= min(ids) <= max(ids) < self._vocab_size:
            raise ValueError(f"it drafted token ids that are not between 0 and {self._vocab_size - 1}")
        return Draft(ids, min(max(draft.evidence, 0), MOST_CLASSES - 1)) if ids else None

    def _try(self, action: Callable[[], T]) -> T | None:
        """What ``action`` returns; where it fails, nothing, and drafting has ended."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001 - a drafter may fail in any way; the answer goes on
            self._run = None
            self.problem = f"the drafter {self._name} failed: {type(error).__name__}: {error}"[:300]
            return None
