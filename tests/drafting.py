"""Drafters and an engine for tests of speculation."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import numpy as np

from tpudeploy.contracts.drafter import Draft, Drafter, DraftRun
from tpudeploy.contracts.dtypes import Array
from tpudeploy.runtime.rounding import Rounding
from tpudeploy.runtime.token_engine import Settled, TokenEngine

Propose = Callable[[list[int], int], Sequence[int]]
"""From the sequence so far and the limit to a draft."""


class Scripted(Drafter):
    """Drafts by a function; notes what it is told."""

    name = "scripted"

    def __init__(self, propose: Propose) -> None:
        self.propose = propose
        self.seen: list[int] = []
        self.judged: list[tuple[int, int]] = []

    def begin(self) -> DraftRun:
        self.seen.clear()
        return _Run(self)


class _Run(DraftRun):
    def __init__(self, owner: Scripted) -> None:
        self._owner = owner

    def extend(self, ids: Sequence[int]) -> None:
        self._owner.seen.extend(ids)

    def propose(self, limit: int) -> Draft | None:
        ids = tuple(self._owner.propose(self._owner.seen, limit))
        return Draft(ids) if ids else None

    def judge(self, draft: Draft, accepted: int) -> None:
        self._owner.judged.append((len(draft.ids), accepted))


class TableEngine(TokenEngine):
    """Logits by a function of the sequence: an engine whose passes of any width agree to the last bit.

    :param width: tokens that one pass verifies; 0: it verifies none.
    """

    def __init__(
        self, logits: Callable[[tuple[int, ...]], Array], *, width: int = 8, seq_length: int = 64, extra: float = 0.11
    ) -> None:
        self._logits = logits
        self._width = width
        self._length = seq_length
        self._extra = extra
        self._computed: list[int] = []
        self.held: list[int] = []
        self.passes: list[int] = []
        """The number of tokens of every pass."""
        self._revision = 0

    @property
    def revision(self) -> int:
        return self._revision

    @property
    def seq_length(self) -> int:
        return self._length

    @property
    def vocab_size(self) -> int:
        return len(self._logits(()))

    def reuse(self, ids: Sequence[int], *, known: int = 0) -> int:
        assert list(ids[: min(known, len(self.held))]) == self.held[:known], "not what the cache holds"
        same = next((i for i, (a, b) in enumerate(zip(self.held, ids, strict=False)) if a != b), len(self.held))
        kept = min(same, len(ids) - 1)
        self._revision += kept < len(self.held)
        del self.held[kept:]
        return kept

    def pass_size(self, count: int) -> int:
        return count

    def forward(self, ids: Sequence[int], *, rows: int = 1) -> Array:
        self.passes.append(len(ids))
        self.held += ids
        self._revision += 1
        assert len(self.held) <= self._length
        count = len(self.held)
        return np.array([self._row(count - rows + row + 1) for row in range(rows)], dtype=np.float32)

    def draft_limit(self) -> int:
        return max(0, min(self._width, self._length - len(self.held)) - 1)

    def verify_extra(self) -> float:
        return self._extra

    def verify(self, ids: Sequence[int]) -> Array:
        assert 0 < len(ids) <= self.draft_limit() + 1
        self.passes.append(len(ids))
        sequence = [*self.held, *ids]
        self._computed = list(ids)
        rows = range(len(self.held) + 1, len(sequence) + 1)
        return np.array([self._logits(tuple(sequence[:count])) for count in rows], dtype=np.float32)

    def accept(self, ids: Sequence[int]) -> None:
        assert list(ids) == self._computed[: len(ids)], "rows that were never computed"
        self.held += ids
        self._revision += 1

    def settle(self, wanted: Container[int] = ()) -> Iterator[Settled]:
        raise AssertionError("nothing is ever in doubt")

    def forget(self) -> None:
        self.held.clear()
        self._revision += 1

    def close(self) -> None: ...

    def _row(self, count: int) -> Array:
        return self._logits(tuple(self.held[:count]))


class NoisyEngine(TableEngine):
    """An engine whose verify passes round differently, and so does whatever is computed over rows that they left.

    :param noise: root mean square of what a logit is off by, as a share of the best.
    """

    def __init__(
        self, logits: Callable[[tuple[int, ...]], Array], noise: float, rounding: Rounding, **options: Any
    ) -> None:
        super().__init__(logits, **options)
        self.noise = noise
        self._rounding = rounding
        self._settled = 0
        self.settlings: list[int] = []
        """The number of passes of each."""

    @property
    def rounding(self) -> Rounding:
        return self._rounding

    @property
    def pending(self) -> int:
        return len(self.held) - self._settled

    def reuse(self, ids: Sequence[int], *, known: int = 0) -> int:
        kept = super().reuse(ids, known=known)
        self._settled = min(self._settled, kept)
        return kept

    def forward(self, ids: Sequence[int], *, rows: int = 1) -> Array:
        exact = self.pending == 0
        logits = super().forward(ids, rows=rows)
        if exact:
            self._settled = len(self.held)
            return logits
        first = len(self.held) - rows + 1
        return np.array([self._off(row, self.held[: first + place], 0) for place, row in enumerate(logits)])

    def verify(self, ids: Sequence[int]) -> Array:
        logits = super().verify(ids)
        return np.array([self._off(row, [*self.held, *ids[: i + 1]], 1) for i, row in enumerate(logits)])

    def settle(self, wanted: Container[int] = ()) -> Iterator[Settled]:
        ids, start = self.held[self._settled :], self._settled
        del self.held[start:]
        self.settlings.append(1)
        for place, token in enumerate(ids, start):
            self.settlings[-1] += 1
            row = self.forward([token])[0]
            yield Settled(1, place, row if place in wanted else None)

    def forget(self) -> None:
        super().forget()
        self._settled = 0

    def _off(self, row: Array, sequence: Sequence[int], kind: int) -> Array:
        random = np.random.default_rng(abs(hash((kind, *sequence))))
        off: Array = row + self.noise * max(1.0, float(row.max())) * random.standard_normal(len(row))
        return off.astype(np.float32)


def random_table(vocab: int, *, order: int = 2, seed: int = 0) -> Callable[[tuple[int, ...]], Array]:
    """Logits (vocab,) that depend on the last ``order`` tokens."""
    table = np.random.default_rng(seed).normal(size=(vocab,) * (order + 1)).astype(np.float32) * 2

    def logits(ids: tuple[int, ...]) -> Array:
        padded = (*(0,) * order, *ids)[-order:]
        row: Array = table[padded]
        return row

    return logits
