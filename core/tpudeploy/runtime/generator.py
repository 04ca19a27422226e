"""Generation: prompt ids in, tokens out one by one, until a stop token, the length limit or a cancellation.

Length: the cache holds ``seq_length`` tokens, and an answer's last token need not be in it. So a prompt of ``n`` tokens
leaves room for ``seq_length - n + 1``: at least one, as long as the prompt fits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tpudeploy.contracts.drafter import Drafter
from tpudeploy.errors import SequenceTooLongError, UsageError
from tpudeploy.runtime.constraint import TokenConstraint
from tpudeploy.runtime.logprobs import TokenLogprobs, check_alternatives
from tpudeploy.runtime.prompt_lookup import PromptLookup
from tpudeploy.runtime.sampling import Sampler, SamplingOptions
from tpudeploy.runtime.speculation import DraftCounts
from tpudeploy.runtime.token_engine import TokenEngine
from tpudeploy.runtime.writer import Cancelled, Ends, Writer

FinishReason = Literal["stop", "length", "cancelled"]


def never() -> bool:
    """Never cancelled."""
    return False


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate.

    :param max_new_tokens: tokens of the answer at most; None: as many as fit.
    :param stop_ids: ids that end the answer; they are not part of it.
    :param ignore_eos: take stop ids for ordinary tokens, as benchmarks do.
    :param drafter: guesses tokens, where the engine can verify them; None: one token a pass.
    :param logprobs: tell the log-probability of each token, and of so many of the likeliest in its place (0 to 20).
    :param constraint: the form that the answer must have; it ends where it has it, or where it becomes too long.
    :raises UsageError: ``max_new_tokens`` is below 1, or ``logprobs`` out of range.
    """

    max_new_tokens: int | None = None
    stop_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    drafter: Drafter | None = field(default_factory=PromptLookup)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    logprobs: int | None = None
    constraint: TokenConstraint | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be 1 or more, not {self.max_new_tokens}.")
        check_alternatives(self.logprobs)


DEFAULT_OPTIONS = GenerationOptions()
"""Greedy, as many tokens as fit, no stop ids."""


@dataclass(frozen=True)
class TokenEvent:
    """One token of an answer.

    :param index: its place in the answer, from 0.
    :param elapsed_s: computing time since the generation began.
    :param logprobs: what the model made of it, where that was asked for.
    """

    token_id: int
    index: int
    elapsed_s: float
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True)
class GenerationResult:
    """What a generation came to.

    :param token_ids: the answer, without the stop token.
    :param stop_id: the token that ended it, where one did.
    :param prompt_tokens: tokens of the prompt.
    :param reused_tokens: those of them that the cache held already.
    :param first_token_s: computing time up to the first token; None where there was none.
    :param tokens_per_s: rate of the tokens after the first; 0 where there were none.
    :param elapsed_s: computing time; what a slow reader spends between tokens does not count.
    :param drafts: passes after the first token, and what has become of drafts.
    :param draft_problem: why drafting ended early; empty where it did not.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_id: int | None
    prompt_tokens: int
    reused_tokens: int
    first_token_s: float | None
    tokens_per_s: float
    elapsed_s: float
    drafts: DraftCounts = field(default_factory=DraftCounts)
    draft_problem: str = ""

    @property
    def tokens_per_pass(self) -> float:
        """Tokens after the first, a token that ended the answer included, for each pass; 0 where there were none."""
        tokens = len(self.token_ids) + (self.stop_id is not None) - 1
        return tokens / self.drafts.passes if self.drafts.passes else 0.0


class Generation(Iterator[TokenEvent]):
    """An answer in the making: iterate for its tokens, then look at :attr:`result`.

    Closing it, or just not going on, is a cancellation. See :func:`generate` for parameters and errors.
    """

    def __init__(
        self, engine: TokenEngine, prompt_ids: Sequence[int], options: GenerationOptions, cancelled: Cancelled
    ) -> None:
        ids = [int(token_id) for token_id in prompt_ids]
        self._prompt_tokens = len(ids)
        self._limit = _token_limit(self._prompt_tokens, engine.seq_length, options.max_new_tokens)
        self._stop_ids = frozenset() if options.ignore_eos else options.stop_ids
        check_choice(engine, options)
        ends = Ends(self._stop_ids, self._prompt_tokens + self._limit)
        self._sampler = Sampler(options.sampling, ids, logprobs=options.logprobs, constraint=options.constraint)
        self._writer = Writer(engine, ids, self._sampler, options.drafter, ends, cancelled)
        self._ready: deque[tuple[int, TokenLogprobs | None]] = deque()
        self._shown: list[int] = []
        self._finish: FinishReason | None = None
        self._stop_id: int | None = None
        self._first_token_s: float | None = None
        self._elapsed_s = 0.0

    @property
    def result(self) -> GenerationResult:
        """What it came to; what it has come to so far, and cancelled, where it was not finished."""
        later_s = self._elapsed_s - (self._first_token_s or 0.0)
        later = len(self._shown) + (self._stop_id is not None) - 1
        return GenerationResult(
            token_ids=tuple(self._shown),
            finish_reason=self._finish or "cancelled",
            stop_id=self._stop_id,
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._writer.reused or 0,
            first_token_s=self._first_token_s,
            tokens_per_s=later / later_s if later > 0 and later_s > 0 else 0.0,
            elapsed_s=self._elapsed_s,
            drafts=replace(self._writer.counts),
            draft_problem=self._writer.draft_problem,
        )

    def __next__(self) -> TokenEvent:
        if self._finish is not None:
            raise StopIteration
        if not self._ready:
            self._advance()
        if not self._ready:
            self._finish = "cancelled"
            raise StopIteration
        token_id, logprobs = self._ready.popleft()
        if self._first_token_s is None:
            self._first_token_s = self._elapsed_s
        if token_id in self._stop_ids:
            self._finish, self._stop_id = "stop", token_id
            raise StopIteration
        self._shown.append(token_id)
        if not self._ready and self._sampler.complete:
            self._finish = "stop"
        elif len(self._shown) == self._limit:
            self._finish = "length"
        return TokenEvent(token_id, len(self._shown) - 1, self._elapsed_s, logprobs)

    def _advance(self) -> None:
        """Run a pass."""
        started = time.perf_counter()
        noted = self._sampler.noted
        noted.clear()  # a pass that failed may have left some
        try:
            written = self._writer.advance()
        finally:
            self._elapsed_s += time.perf_counter() - started
        self._ready.extend((token, noted[place] if noted else None) for place, token in enumerate(written))

    def close(self) -> None:
        """Generate no more. Idempotent."""
        self._finish = self._finish or "cancelled"


def generate(
    engine: TokenEngine,
    prompt_ids: Sequence[int],
    options: GenerationOptions = DEFAULT_OPTIONS,
    *,
    cancelled: Cancelled = never,
) -> Generation:
    """Generate an answer; nothing is computed before the first token is asked for.

    :param cancelled: asked before every pass; true ends the answer.
    :returns: an iterator of tokens, with a ``result``.
    :raises UsageError: no prompt, or (when iterated) an id outside of the vocabulary; or options that need logits,
        where the nets choose their tokens themselves.
    :raises SequenceTooLongError: the prompt is longer than the bundle's sequence length.
    :raises BackendError: when iterated: a net failed, or its output is not a number.
    """
    return Generation(engine, prompt_ids, options, cancelled)


def _token_limit(prompt_tokens: int, seq_length: int, wanted: int | None) -> int:
    """Tokens that the answer may have."""
    if prompt_tokens == 0:
        raise UsageError("the prompt is empty: there is nothing to continue.")
    if prompt_tokens > seq_length:
        raise SequenceTooLongError(
            f"the prompt has {prompt_tokens} tokens, but this bundle holds {seq_length}.",
            hint="Shorten the prompt, or compile the model with a larger --seq-length.",
        )
    room = seq_length - prompt_tokens + 1
    return room if wanted is None else min(wanted, room)


def check_choice(engine: TokenEngine, options: GenerationOptions) -> None:
    """:raises UsageError: what only logits allow, where the nets give none; a bias of a token that there is not."""
    sampling, vocab_size = options.sampling, engine.vocab_size
    if not engine.gives_logits and not (sampling.plain and options.constraint is None):
        raise UsageError(
            "these nets choose the most likely token themselves and give no logits to draw from.",
            hint="Leave out --temperature, --top-k, --top-p, penalties, logit biases and the form of answers.",
        )
    if not engine.gives_logits and options.logprobs is not None:
        raise UsageError("these nets give no logits, so there are no log-probabilities.", hint="Leave out logprobs.")
    highest = max(sampling.logit_bias, default=0)
    if vocab_size is not None and highest >= vocab_size:
        raise UsageError(f"logit_bias names token {highest}, but this model's ids end with {vocab_size - 1}.")
