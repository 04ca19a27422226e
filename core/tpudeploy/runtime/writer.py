"""The tokens of an answer, pass by pass: one a pass, or as many as of a draft turn out right, and one more.

Every pass computes "the sequence so far, less what the cache holds of it". So a prompt that begins like an earlier one
costs only what differs, and an answer that was interrupted, closed or overtaken by another leaves nothing behind that
could spoil the next.

A draft never decides anything. Each row of a verify pass is the model's own word on what follows, and the sampler
chooses from it as it would have done one pass at a time: with the same history, and where it draws, with the same
random numbers. A drafted token is right if, and only if, it is what was chosen. What nets of another width round
differently is told apart where it could matter: see :mod:`tpudeploy.runtime.near_ties`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tpudeploy.contracts.drafter import Draft, Drafter
from tpudeploy.contracts.dtypes import Array
from tpudeploy.errors import BackendError
from tpudeploy.runtime.near_ties import NearTies
from tpudeploy.runtime.sampling import Sampler
from tpudeploy.runtime.speculation import DraftCounts, Speculation
from tpudeploy.runtime.token_engine import TokenEngine

Cancelled = Callable[[], bool]
"""Asked before every pass whether to give up, for example ``threading.Event().is_set``."""


@dataclass(frozen=True)
class Ends:
    """Where an answer ends.

    :param stop_ids: after any of these.
    :param length: when prompt and answer have so many tokens together.
    """

    stop_ids: frozenset[int]
    length: int


class Writer:
    """Writes one answer.

    :param ids: the prompt.
    :param drafter: used where the engine can verify drafts.
    :ivar reused: tokens of the prompt that the cache held already; None before the first pass.
    """

    def __init__(
        self,
        engine: TokenEngine,
        ids: Sequence[int],
        sampler: Sampler,
        drafter: Drafter | None,
        ends: Ends,
        cancelled: Cancelled,
    ) -> None:
        self.reused: int | None = None
        self.counts = DraftCounts()
        self._engine = engine
        self._ids = list(ids)
        self._sampler = sampler
        self._drafter = drafter
        self._ends = ends
        self._cancelled = cancelled
        self._ties = NearTies(engine, self._ids, self.counts)
        self._speculation: Speculation | None = None
        self._revision: int | None = None  # of the cache, when it last held a beginning of ``_ids`` and nothing else

    @property
    def draft_problem(self) -> str:
        """Why drafting ended early; empty where it did not."""
        return self._speculation.problem if self._speculation is not None else ""

    def advance(self) -> Sequence[int]:
        """The tokens of the next pass, one or more; none where it was cancelled.

        :raises BackendError: a net failed, or its output is not a number.
        """
        before = len(self._ids)
        # What nobody touched since is not compared again: for each token, the whole sequence so far would be.
        engine = self._engine
        revision = engine.revision
        known = before if revision is not None and revision == self._revision else 0
        start = engine.reuse(self._ids, known=known)
        first = self.reused is None
        if self.reused is None:
            self.reused = start
        draft = self._draft() if start == before - 1 and not first else None
        if draft is not None:
            self._verify(draft)
        else:
            if start == before - 1 and not first and self._ties.is_due():
                self._settle(choosing=False)
                start = engine.reuse(self._ids)  # less, if it was cancelled
            self._compute(start, counted=not first)
        written = self._ids[before:]
        if written and self._speculation is not None:
            self._speculation.extend(written)
        self._revision = self._engine.revision
        return written

    def _compute(self, start: int, *, counted: bool) -> None:
        """Compute what follows the first ``start`` tokens, and choose one from the last logits."""
        engine, ids = self._engine, self._ids
        while not self._cancelled():
            began = time.perf_counter()
            stop = start + engine.pass_size(len(ids) - start)
            self.counts.passes += counted
            if stop < len(ids):
                engine.forward(ids[start:stop], rows=0)
            elif not engine.gives_logits:
                ids.append(engine.next_token(ids[start:]))
                return
            else:
                row: Array = engine.forward(ids[start:])[0]
                if counted and self._speculation is not None:
                    self._speculation.decoded(time.perf_counter() - began)
                if not self._choose(row, self._margin(row)):
                    self._settle()
                return
            start = stop

    def _verify(self, draft: Draft) -> None:
        """Compute the last token and the drafted ones in one pass; take of these as many as are right, and one more."""
        if self._cancelled():
            return
        engine, counts, began = self._engine, self.counts, time.perf_counter()
        before = len(self._ids)
        rows = engine.verify([self._ids[-1], *draft.ids])
        counts.passes += 1
        counts.verify_passes += 1
        counts.drafted += len(draft.ids)
        seconds = time.perf_counter() - began
        accepted, clear = 0, True
        for row, drafted in zip(rows, (*draft.ids, None), strict=True):
            clear = self._choose(row, self._margin(row, drafted=True))
            if not clear or self._ids[-1] != drafted:
                break
            accepted += 1
            if self._ended:
                break
        counts.accepted += accepted
        engine.accept(self._ids[before - 1 : -1])
        if self._speculation is not None:
            self._speculation.verified(draft, accepted, seconds)
        if not clear:
            self._settle()

    def _settle(self, *, choosing: bool = True) -> None:
        """Choose what was too close to tell, or be prepared for it."""
        spent = self._ties.settle((lambda row: self._choose(row, 0.0)) if choosing else None, self._cancelled)
        self.counts.passes += spent
        if self._speculation is not None:
            self._speculation.recomputed(spent)

    @property
    def _ended(self) -> bool:
        stops = self._ids[-1] in self._ends.stop_ids or self._sampler.complete
        return stops or len(self._ids) >= self._ends.length

    def _margin(self, row: Array, *, drafted: bool = False) -> float:
        """See :meth:`NearTies.margin`; logits (vocab,) after the last token. Draws are as good by any net."""
        return self._ties.margin(row, len(self._ids) - 1, drafted=drafted) if self._sampler.greedy else 0.0

    def _choose(self, row: Array, margin: float) -> bool:
        """Choose the next token from logits (vocab,); returns whether it could be told."""
        try:
            token = self._sampler.sample_clear(row, margin)
        except BackendError:
            self._engine.forget()
            raise
        if margin:
            self._engine.rounding.chose(near_tie=token is None)
        if token is not None:
            self._ids.append(token)
        return token is not None

    def _draft(self) -> Draft | None:
        """A draft that leaves room for the token after it; the drafter starts when it is first asked for one."""
        engine, drafter = self._engine, self._drafter
        if self._speculation is None and drafter is not None:
            self._drafter = None
            if engine.vocab_size is not None and engine.draft_limit() > 0:
                self._speculation = Speculation(drafter, self._ids, engine.vocab_size, engine.verify_extra())
        if self._speculation is None:
            return None
        return self._speculation.propose(min(engine.draft_limit(), self._ends.length - len(self._ids) - 1))
