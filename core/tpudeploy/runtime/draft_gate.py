"""Whether a draft is worth a verify pass, and how much may be lost on drafts in the worst case.

Costs are in decode passes. A verify pass costs ``1 + extra``; it yields a token as a decode pass does, and one more for
each drafted token that was right. Two conditions must hold before one is run:

* The drafted tokens that are expected to be right outweigh ``extra``, and what near ties are expected to take back of
  them. The expectation is learnt for each class of evidence, from its own drafts; it recovers slowly, so that a class
  that failed is tried again later. What near ties take back is learnt from all drafts.
* There is credit for ``extra``. Every token earns a little, every right token of a draft earns 1, every verify pass
  costs ``extra``. So however drafts fail, passes cost at most ``1 + EARNED`` a token, and one wrong draft over that.
  Passes that tell near ties apart are paid from what drafts have saved; for what that does not cover there is debt, and
  no draft until it is paid. So there is never more than one such debt.
"""

from __future__ import annotations

EARNED = 0.04
"""Credit for each token: the share of its cost that drafts may waste, below the 5 % that are promised."""
DEFAULT_EXTRA = 0.25
"""Of a verify pass, where neither the compiler's cycles nor a clock tell; measured: 0.11 (INT8) to 0.22 (INT4)."""
MOST_EXTRA = 16.0
_MOST_CREDIT = 1.0
_FIRST_GUESS = 1.0
"""Tokens of a draft that are taken to be right before anything is known of its evidence."""
_LEARNT = 0.3
_RECOVERED = 0.002
_CLOCKED = 0.3
_TAKEN_BACK = 0.1


class DraftGate:
    """Decides for one answer.

    :param extra: what a verify pass costs over a decode pass; None measures it.
    """

    def __init__(self, extra: float | None = None) -> None:
        self._measures = extra is None
        self.extra = DEFAULT_EXTRA if extra is None else min(max(extra, 0.0), MOST_EXTRA)
        self._credit = min(self.extra, _MOST_CREDIT)
        self._saved = 0.0
        self._lost = 0.0  # passes that near ties took, for each verify pass
        self._expected: dict[int, float] = {}
        self._decode_s: float | None = None
        self._verify_s: float | None = None

    def wants(self, evidence: int, count: int) -> bool:
        """Whether to verify a draft of ``count`` tokens."""
        if self._measures and self._decode_s is None:
            return False  # there would be nothing to compare a verify pass with
        expected = min(self._expected.get(evidence, _FIRST_GUESS), count)
        return self._credit >= self.extra and expected > self.extra + self._lost

    def decoded(self, seconds: float) -> None:
        """A decode pass was run."""
        self._decode_s = _average(self._decode_s, seconds)
        self._earn(EARNED)

    def verified(self, evidence: int, accepted: int, seconds: float) -> None:
        """A draft was verified, and ``accepted`` of its tokens were right."""
        self._verify_s = _average(self._verify_s, seconds)
        self._measure()
        before = self._expected.get(evidence, _FIRST_GUESS)
        self._expected[evidence] = before + _LEARNT * (accepted - before)
        self._lost -= _TAKEN_BACK * self._lost
        self._earn(EARNED * (1 + accepted) + accepted - self.extra)

    def recomputed(self, passes: int) -> None:
        """Tokens that drafts had brought were computed once more; paid from what they had saved, as far as it goes."""
        self._credit += self._saved - passes
        self._saved = 0.0
        self._lost += _TAKEN_BACK * passes

    def _earn(self, amount: float) -> None:
        self._credit += amount
        most = max(_MOST_CREDIT, 1.5 * self.extra)
        if self._credit > most:
            self._saved += self._credit - most
            self._credit = most
        self._lost -= _RECOVERED * self._lost
        for evidence, expected in self._expected.items():
            if expected < _FIRST_GUESS:
                self._expected[evidence] = expected + _RECOVERED * (_FIRST_GUESS - expected)

    def _measure(self) -> None:
        if self._measures and self._decode_s and self._verify_s:
            self.extra = min(max(self._verify_s / self._decode_s - 1, 0.0), MOST_EXTRA)


def _average(before: float | None, value: float) -> float:
    return value if before is None else before + _CLOCKED * (value - before)
