"""Choosing the next token from logits, with the meaning that transformers and OpenAI give each option.

Order: repetition penalty; presence and frequency penalty and bias, which are added; temperature, top-k, top-p; then one
draw. A temperature of 0 means greedy, which takes the most likely token, the lowest id where several are. Logits are
(vocab,) float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

import numpy as np

from tpudeploy.contracts.dtypes import Array
from tpudeploy.errors import BackendError, UsageError
from tpudeploy.runtime.constraint import ConstraintRun, TokenConstraint, best_allowed
from tpudeploy.runtime.logit_offsets import LogitOffsets
from tpudeploy.runtime.logprobs import TokenLogprobs, largest, token_logprobs

_REACHES = (2.0, 4.0, 8.0, 16.0, math.inf)
"""How far below the best (in natural logarithms) top-p looks for its tokens; only those within reach are sorted."""
_BLOCK = 64
_MOST_REJECTED = 32
"""Draws that may hit a token that is not allowed, before all tokens are asked about."""
_COLDEST = 1e-30
"""Temperatures beyond this and its inverse would leave float32; they mean greedy and uniform long before."""


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose a token; the default is greedy.

    :param temperature: divides the logits; 0 means greedy.
    :param top_k: keep the k most likely tokens, and those equal to the last of them; 0 keeps all.
    :param top_p: keep the fewest most likely tokens whose probability reaches this; 1 keeps all.
    :param repetition_penalty: divides positive and multiplies negative logits of tokens already seen; 1 does nothing.
    :param presence_penalty: from -2 to 2, subtracted from the logits of tokens that the answer has; 0 does nothing.
    :param frequency_penalty: from -2 to 2, subtracted once for each time that the answer has the token.
    :param logit_bias: by token id, from -100 to 100, added to its logit.
    :param seed: makes draws repeatable; None takes entropy from the system.
    :raises UsageError: a value out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None

    def __post_init__(self) -> None:
        _require(_is_finite(self.temperature) and self.temperature >= 0, "temperature", "0 or more", self.temperature)
        _require(_is_integer(self.top_k) and self.top_k >= 0, "top_k", "a whole number, 0 or more", self.top_k)
        _require(_is_finite(self.top_p) and 0 < self.top_p <= 1, "top_p", "over 0 and at most 1", self.top_p)
        penalty = self.repetition_penalty
        _require(_is_finite(penalty) and 0.01 <= penalty <= 100, "repetition_penalty", "between 0.01 and 100", penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            penalty = getattr(self, name)
            _require(_is_finite(penalty) and -2 <= penalty <= 2, name, "between -2 and 2", penalty)
        for token, bias in self.logit_bias.items():
            _require(_is_integer(token) and token >= 0, "logit_bias", "given for token ids, 0 or more", token)
            _require(_is_finite(bias) and -100 <= bias <= 100, "logit_bias", "between -100 and 100", bias)
        seed_fits = self.seed is None or (_is_integer(self.seed) and self.seed >= 0)
        _require(seed_fits, "seed", "a whole number, 0 or more", self.seed)

    @property
    def greedy(self) -> bool:
        """Whether no chance is involved."""
        return self.temperature == 0

    @property
    def shifts(self) -> bool:
        """Whether anything is added to logits."""
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias)

    @property
    def stretch(self) -> float:
        """By how much the repetition penalty can stretch the difference of two logits."""
        return max(self.repetition_penalty, 1 / self.repetition_penalty)

    @property
    def plain(self) -> bool:
        """Whether the model's most likely token is taken as it is, for which no logits are needed."""
        return self.greedy and self.repetition_penalty == 1 and not self.shifts


class Sampler:
    """Chooses the tokens of one answer.

    :param prompt_ids: tokens that count as seen for the repetition penalty.
    :param logprobs: how many alternatives to note with each token's log-probability; None notes none.
    :param constraint: the form that the answer must have. Only tokens that go on with it are chosen: the likeliest of
        them, or one drawn of those that top-k and top-p leave, or the likeliest where these leave none.
    :ivar noted: log-probabilities of the tokens that were chosen, until somebody takes them out.
    """

    def __init__(
        self,
        options: SamplingOptions,
        prompt_ids: Iterable[int] = (),
        *,
        logprobs: int | None = None,
        constraint: TokenConstraint | None = None,
    ) -> None:
        self.noted: list[TokenLogprobs] = []
        self._options = options
        self._random = np.random.default_rng(options.seed)
        self._seen = set(prompt_ids)
        self._logprobs = logprobs
        self._form = constraint.begin() if constraint is not None else None
        self._offsets: LogitOffsets | None = None
        if options.shifts:
            self._offsets = LogitOffsets(
                presence=options.presence_penalty, frequency=options.frequency_penalty, bias=options.logit_bias
            )

    @property
    def greedy(self) -> bool:
        """See :attr:`SamplingOptions.greedy`."""
        return self._options.greedy

    @property
    def complete(self) -> bool:
        """Whether the answer has the form that it must have, and ends here."""
        return self._form is not None and self._form.complete

    def sample(self, logits: Array) -> int:
        """Choose a token; it counts as seen from now on.

        :raises BackendError: the logits hold NaN or infinity.
        """
        return cast(int, self.sample_clear(logits, 0.0))  # without rounding, everything is clear

    def sample_clear(self, logits: Array, rounding: float) -> int | None:
        """Choose a token, unless other nets over the same weights might choose another.

        Only a greedy choice is looked at like that: a draw is as good by the one net as by the other.

        :param rounding: by how much the best logit must lead, relative to its size; 0: any lead will do.
        :returns: the token, which counts as seen from now on; None where it is too close to tell, and nothing changed.
        :raises BackendError: the logits hold NaN or infinity.
        """
        best = int(np.argmax(logits))  # the first NaN, where there is one
        if not math.isfinite(logits[best]):
            raise BackendError(
                f"the model's output holds {float(logits[best])} (token {best}).",
                hint="Its 16-bit type may overflow: see `tpudeploy verify`, or compile with --quant bf16.",
            )
        changed, best, size = self._change(logits, best)
        if self._options.greedy:
            token = self._likeliest(changed, best, self._options.stretch * rounding * max(size, 1.0))
        else:
            token = self._drawn(changed)
        if token is not None:
            self._note(logits, token)
        return token

    def _likeliest(self, logits: Array, best: int, margin: float) -> int | None:
        """None where another one comes within the margin."""
        if self._form is not None:
            return best_allowed(logits, self._form, margin)
        return None if margin > 0 and _lead(logits, best) <= margin else best

    def _drawn(self, logits: Array) -> int | None:
        ids, weights = distribution(logits, self._options)
        if self._form is None:
            return int(ids[draw(weights, self._random.random())])
        token = draw_allowed(ids, weights, self._form, self._random)
        return token if token is not None else best_allowed(logits, self._form)

    def _change(self, logits: Array, best: int) -> tuple[Array, int, float]:
        """Penalties and bias.

        :param best: id of the largest logit.
        :returns: the logits with them, the id of the largest, and the size that rounding is relative to. What is added
            makes logits no more exact: so that is the larger one of before and after.
        """
        if self._options.repetition_penalty != 1:
            logits = penalize(logits, self._seen, self._options.repetition_penalty)
            best = int(np.argmax(logits))
        size = abs(float(logits[best]))
        if self._offsets is not None:
            logits = self._offsets.apply(logits)
            best = int(np.argmax(logits))
            size = max(size, abs(float(logits[best])))
        return logits, best, size

    def _note(self, logits: Array, token: int) -> None:
        """A token was chosen, where the model said ``logits``."""
        self._seen.add(token)
        if self._form is not None:
            self._form.advance(token)
        if self._offsets is not None:
            self._offsets.count(token)
        if self._logprobs is not None:
            self.noted.append(token_logprobs(logits, token, self._logprobs))


def _lead(logits: Array, best: int) -> float:
    """By how much the best of (vocab,) leads; ``logits`` are as before afterwards."""
    value = logits[best]
    logits[best] = -math.inf
    second = logits.max()
    logits[best] = value
    return float(value - second)


def penalize(logits: Array, seen: Iterable[int], penalty: float) -> Array:
    """A copy of ``logits`` (vocab,) in which tokens of ``seen`` are less likely (more, for a penalty below 1)."""
    ids = np.fromiter(seen, dtype=np.int64)
    values = logits[ids]
    penalized: Array = logits.copy()
    penalized[ids] = np.where(values < 0, values * penalty, values / penalty)
    return penalized


def distribution(logits: Array, options: SamplingOptions) -> tuple[Array, Array]:
    """What remains to draw from after temperature, top-k and top-p.

    :param logits: (vocab,) float32, finite but for -inf; ``options.temperature`` is over 0.
    :returns: ids and their weights, which need not sum to 1; both (n,), every other token has none.
    """
    if 0 < options.top_k < len(logits):
        ids = largest(logits, options.top_k)
        logits = logits[ids]
    else:
        ids = _all_ids(len(logits))
    temperature = np.float32(min(max(options.temperature, _COLDEST), 1 / _COLDEST))
    with np.errstate(over="ignore"):  # -inf is right for what lies so far below the best
        scaled = logits - np.max(logits)
        scaled /= temperature
    weights = np.exp(scaled)
    if options.top_p == 1:
        return ids, weights
    kept = _nucleus(scaled, weights, options.top_p)
    return ids[kept], weights[kept]


def draw(weights: Array, point: float) -> int:
    """The position at which ``point``, from 0 to 1, lies when the weights (n,) are laid end to end.

    In blocks: summing up a vocabulary one by one takes longer than everything else does.
    """
    starts = np.arange(0, len(weights), _BLOCK)
    blocks = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    target = point * blocks[-1]
    block = min(int(np.searchsorted(blocks, target, side="right")), len(blocks) - 1)
    edges = np.cumsum(weights[starts[block] : starts[block] + _BLOCK], dtype=np.float64)
    within = int(np.searchsorted(edges, target - (blocks[block - 1] if block else 0.0), side="right"))
    # Rounding may lead just beyond the block's end: then it is its last token that has a weight.
    last = int(np.searchsorted(edges, edges[-1], side="left"))
    return int(starts[block]) + min(within, last)


def draw_allowed(ids: Array, weights: Array, form: ConstraintRun, points: np.random.Generator) -> int | None:
    """Draw among the tokens that are allowed; None where none of them is.

    Tokens are drawn and rejected one by one, which leaves the weights of the others in proportion.

    :param ids: (n,); of their ``weights``, those of rejected tokens become 0.
    """
    for _ in range(_MOST_REJECTED):
        if not weights.any():
            return None
        place = draw(weights, points.random())
        if form.allows(int(ids[place])):
            return int(ids[place])
        weights[place] = 0
    weights[[place for place in np.flatnonzero(weights) if not form.allows(int(ids[place]))]] = 0
    return int(ids[draw(weights, points.random())]) if weights.any() else None


@lru_cache(maxsize=4)
def _all_ids(count: int) -> Array:
    """0 to ``count``, made once: for each token anew, it would cost more than the exponentials."""
    ids = np.arange(count)
    ids.flags.writeable = False
    return ids


def _nucleus(scaled: Array, weights: Array, top_p: float) -> Array:
    """Positions of the fewest largest weights that reach ``top_p`` of their sum, largest first, ties by position.

    :param scaled: log of ``weights`` (n,), 0 for the largest.
    """
    target = top_p * float(weights.sum(dtype=np.float64))
    for reach in _REACHES:
        candidates = np.flatnonzero(scaled >= -reach)
        if float(weights[candidates].sum(dtype=np.float64)) >= target:
            break
    ranked = candidates[np.argsort(-weights[candidates], kind="stable")]
    better = np.cumsum(weights[ranked], dtype=np.float64)[:-1]  # what the betters of each but the first hold together
    kept: Array = ranked[: 1 + int(np.count_nonzero(better < target))]
    return kept


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(valid: bool, name: str, rule: str, value: object) -> None:
    if not valid:
        raise UsageError(f"{name} must be {rule}, not {value!r}.")
