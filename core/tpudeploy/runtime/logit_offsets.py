"""What is added to logits, token by token: a bias that the user gives, and penalties for what an answer holds already.

As OpenAI defines them: ``logit + bias - frequency_penalty * count - presence_penalty * (count > 0)``, where ``count``
is how often the answer, without the prompt, has the token.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tpudeploy.contracts.dtypes import Array


class LogitOffsets:
    """Offsets of one answer.

    They are kept up to date for the whole vocabulary: a token costs one addition of two arrays, and no memory, however
    long the answer is.

    :param bias: by token id.
    """

    def __init__(self, *, presence: float, frequency: float, bias: Mapping[int, float]) -> None:
        self._presence = presence
        self._frequency = frequency
        self._bias = dict(bias)
        self._counts: dict[int, int] = {}
        self._offsets: Array | None = None
        self._changed: Array | None = None

    def apply(self, logits: Array) -> Array:
        """The logits (vocab,) float32 with offsets, in an array that is only good until the next call."""
        if self._offsets is None or self._changed is None:
            self._offsets = np.zeros(len(logits), dtype=np.float32)
            self._changed = np.empty_like(self._offsets)
            for token, bias in self._bias.items():
                self._offsets[token] = bias
        return np.add(logits, self._offsets, out=self._changed)

    def count(self, token: int) -> None:
        """The answer has a token more, one that :meth:`apply` was asked about."""
        count = self._counts[token] = self._counts.get(token, 0) + 1
        if self._offsets is not None:
            # From the count anew, so that rounding does not add up.
            self._offsets[token] = self._bias.get(token, 0.0) - self._frequency * count - self._presence
