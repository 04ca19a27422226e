"""Log-probabilities of tokens, as the model says them.

They are those of the model's own distribution: the softmax of its logits, before penalties, biases, temperature, top-k
and top-p. So they tell what the model thought, whatever the options made of it, and a greedy answer has some as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tpudeploy.contracts.dtypes import Array
from tpudeploy.errors import UsageError

MOST_ALTERNATIVES = 20
"""As many as OpenAI's interface allows."""
_BLOCK = 64


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities where a token was chosen, in natural logarithms.

    :param chosen: of the token.
    :param top: the likeliest tokens there, and theirs, likeliest first and of equals the lowest id; the chosen one is
        among them only where it is one of these.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprobs(logits: Array, token: int, alternatives: int) -> TokenLogprobs:
    """Log-probabilities of a token and of the likeliest ones.

    :param logits: (vocab,) float32 without NaN.
    """
    best = float(logits.max())
    total = best + math.log(float(np.exp(logits - np.float32(best)).sum(dtype=np.float64)))
    ids = largest(logits, alternatives) if alternatives else np.empty(0, dtype=np.int64)
    ranked = ids[np.argsort(-logits[ids], kind="stable")][:alternatives]
    top = tuple((int(other), float(logits[other]) - total) for other in ranked)
    return TokenLogprobs(float(logits[token]) - total, top)


def check_alternatives(count: int | None) -> None:
    """Refuse a number of alternatives that cannot be. :raises UsageError: out of range, or no whole number."""
    whole = isinstance(count, int) and not isinstance(count, bool)
    if count is not None and not (whole and 0 <= count <= MOST_ALTERNATIVES):
        raise UsageError(f"logprobs must be a whole number from 0 to {MOST_ALTERNATIVES}, not {count!r}.")


def largest(logits: Array, count: int) -> Array:
    """Ids of the ``count`` largest of (vocab,), and of those equal to the last of them, ascending."""
    if count >= len(logits):
        return np.arange(len(logits))
    rows = len(logits) // _BLOCK
    least = -np.inf
    if rows >= count:
        # Each column's largest: `count` of them are at least as large as the count-th of them, so it bounds from below.
        columns = logits[: rows * _BLOCK].reshape(_BLOCK, rows).max(axis=0)
        least = np.partition(columns, -count)[-count]
    candidates = np.flatnonzero(logits >= least)
    values = logits[candidates]
    found: Array = candidates[values >= np.partition(values, -count)[-count]]
    return found
