"""The tokens of an answer, pass by pass: one a pass, or as many as of a draft turn out right, and one more.

Every pass computes "the sequence so far, less what the cache holds of it". So a prompt that begins like an earlier one
costs only what differs, and an answer that was interrupted, closed or overtaken by another leaves nothing behind that
could spoil the next.

A draft never decides anything. Each row of a verify pass is the model's own word on what follows, and the sampler
chooses from it as it would have done one pass at a time: with the same history, and where it draws, with the same
random numbers. A drafted token is right if, and only if, it is what was chosen. What nets of another width round
differently is told apart where it could matter: where the best logit of a greedy choice hardly leads, rows that came of
verify passes are computed anew as they would have been without drafts, and the choice is made from those.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tpudeploy.contracts.drafter import Draft, Drafter
from tpudeploy.contracts.dtypes import Array
from tpudeploy.errors import BackendError
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
        revision = self._engine.revision
        known = before if revision is not None and revision == self._revision else 0
        start = self._engine.reuse(self._ids, known=known)
        first = self.reused is None
        if self.reused is None:
            self.reused = start
        draft = self._draft() if start == before - 1 and not first else None
        if draft is not None:
            self._verify(draft)
        else:
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
                if not self._choose(row, clear=engine.settled):
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
            clear = self._choose(row, clear=False)
            if not clear or self._ids[-1] != drafted:
                break
            accepted += 1
            if self._ended:
                break
        counts.accepted += accepted
        engine.accept(self._ids[before - 1 : -1] if clear else self._ids[before - 1 :])
        if self._speculation is not None:
            self._speculation.verified(draft, accepted, seconds)
        if not clear:
            self._settle()

    @property
    def _ended(self) -> bool:
        stops = self._ids[-1] in self._ends.stop_ids or self._sampler.complete
        return stops or len(self._ids) >= self._ends.length

    def _choose(self, row: Array, *, clear: bool) -> bool:
        """Choose the next token from logits (vocab,); returns whether it could be told.

        :param clear: the logits are what they would be without drafts.
        """
        try:
            token = self._sampler.sample_clear(row, 0.0 if clear else self._engine.rounding)
        except BackendError:
            self._engine.forget()
            raise
        if token is not None:
            self._ids.append(token)
        return token is not None

    def _settle(self) -> None:
        """Compute the last token anew, and before it every row that came of drafts; then choose for certain."""
        engine, spent = self._engine, 0
        engine.reuse(self._ids)
        passes = engine.settle()
        while not self._cancelled():
            tokens = next(passes, None)
            spent += 1
            if tokens is None:
                self._choose(engine.forward(self._ids[-1:])[0], clear=True)
                break
            self.counts.recomputed += tokens
        self.counts.passes += spent
        if self._speculation is not None:
            self._speculation.recomputed(spent)

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
