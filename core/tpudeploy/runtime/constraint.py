"""What an answer may consist of, token by token: the seam for answers in a given form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from tpudeploy.contracts.dtypes import Array
from tpudeploy.errors import UsageError
from tpudeploy.runtime.logprobs import largest

_LOOKS = (8, 128, 2048)
"""How many of the likeliest tokens are looked at before more are."""


class ConstraintRun(Protocol):
    """One answer, as far as it is written."""

    @property
    def complete(self) -> bool:
        """Whether the answer has its form and ends here; no token is asked about any more."""

    def allows(self, token_id: int) -> bool:
        """Whether the answer may go on with this token."""

    def advance(self, token_id: int) -> None:
        """The answer has gone on with it."""


class TokenConstraint(Protocol):
    """A form that answers must have; holds nothing of any answer."""

    def begin(self) -> ConstraintRun:
        """Start an answer."""


def best_allowed(logits: Array, run: ConstraintRun, margin: float = 0.0) -> int | None:
    """The likeliest token that is allowed; None where another allowed one comes within ``margin`` of it.

    :param logits: (vocab,) float32.
    :raises UsageError: none is allowed.
    """
    best: int | None = None
    for token in _by_likelihood(logits):
        if best is not None and logits[best] - logits[token] > margin:
            return best
        if run.allows(token):
            if best is not None:
                return None
            best = token
            if margin == 0:
                return best
    if best is None:
        raise UsageError("no token of this model goes on with the answer in the form that was asked for.")
    return best


def _by_likelihood(logits: Array) -> Iterator[int]:
    """Token ids, likeliest first, of equals the lowest first; the fewer are asked for, the less is sorted."""
    done = 0
    for count in (*_LOOKS, len(logits)):
        ids = largest(logits, count)
        ranked = ids[np.argsort(-logits[ids], kind="stable")]
        yield from map(int, ranked[done:])
        done = len(ranked)
