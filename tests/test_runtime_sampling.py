"""Sampling against hand-computed distributions and transformers' definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tpudeploy.contracts.dtypes import Array
from tpudeploy.errors import BackendError, UsageError
from tpudeploy.runtime.sampling import Sampler, SamplingOptions, distribution, draw, penalize

LOGITS = np.log(np.array([0.4, 0.1, 0.25, 0.05, 0.2], dtype=np.float32))


def probabilities(logits: Array, options: SamplingOptions) -> Array:
    """(vocab,) probabilities that are drawn from."""
    ids, weights = distribution(logits, options)
    full = np.zeros(len(logits))
    full[ids] = weights / weights.sum(dtype=np.float64)
    return full


def transformers_probabilities(logits: Array, options: SamplingOptions) -> Array:
    """The same by transformers' logits processors, written down from their source."""
    scores = torch.from_numpy(logits.astype(np.float64)) / options.temperature
    if options.top_k:
        kth = torch.topk(scores, min(options.top_k, len(scores))).values[-1]
        scores = scores.masked_fill(scores < kth, -torch.inf)
    if options.top_p < 1:
        ordered, indices = torch.sort(scores, descending=False)
        remove = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - options.top_p
        remove[-1:] = False
        scores = scores.masked_fill(remove.scatter(0, indices, remove), -torch.inf)
    result: Array = scores.softmax(dim=-1).numpy()
    return result


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (SamplingOptions(temperature=1), [0.4, 0.1, 0.25, 0.05, 0.2]),
        (SamplingOptions(temperature=0.5), np.array([16, 1, 6.25, 0.25, 4]) / 27.5),
        (SamplingOptions(temperature=1, top_k=2), [0.4 / 0.65, 0, 0.25 / 0.65, 0, 0]),
        (SamplingOptions(temperature=1, top_k=99), [0.4, 0.1, 0.25, 0.05, 0.2]),
        (SamplingOptions(temperature=1, top_p=0.6), [0.4 / 0.65, 0, 0.25 / 0.65, 0, 0]),
        (SamplingOptions(temperature=1, top_p=0.66), [0.4 / 0.85, 0, 0.25 / 0.85, 0, 0.2 / 0.85]),
        (SamplingOptions(temperature=1, top_p=0.01), [1, 0, 0, 0, 0]),
        # 0.4 of the 0.85 that top-k leaves is 0.47: top-p comes after, over what is left.
        (SamplingOptions(temperature=1, top_k=3, top_p=0.45), [1, 0, 0, 0, 0]),
        # Temperature comes before top-p: squared, the first alone holds 16 / 27.5 = 0.58.
        (SamplingOptions(temperature=0.5, top_p=0.55), [1, 0, 0, 0, 0]),
    ],
)
def test_hand_computed_distributions(options: SamplingOptions, expected: Array) -> None:
    np.testing.assert_allclose(probabilities(LOGITS, options), expected, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(temperature=1, seed=7),
        SamplingOptions(temperature=0.8, top_p=0.8, seed=8),
        SamplingOptions(temperature=1.5, top_k=3, seed=9),
    ],
)
def test_draws_follow_the_distribution(options: SamplingOptions) -> None:
    draws = 20_000
    sampler = Sampler(options)
    counts = np.bincount([sampler.sample(LOGITS) for _ in range(draws)], minlength=5)
    expected = transformers_probabilities(LOGITS, options) * draws
    assert counts[expected == 0].sum() == 0
    drawn = expected > 0
    chi_square = float(((counts[drawn] - expected[drawn]) ** 2 / expected[drawn]).sum())
    assert chi_square < 18.5  # the 0.1 % point for four degrees of freedom


@settings(max_examples=200, deadline=None)
@given(
    logits=arrays(np.float32, st.integers(1, 60), elements=st.integers(-240, 240).map(lambda n: n / 8), unique=True),
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 70),
    top_p=st.floats(0.02, 1),
)
def test_distributions_are_those_of_transformers(logits: Array, temperature: float, top_k: int, top_p: float) -> None:
    def options(top_p: float) -> SamplingOptions:
        return SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p)

    ours, theirs = probabilities(logits, options(top_p)), transformers_probabilities(logits, options(top_p))
    # Which token is the one that reaches top_p is a matter of rounding, when it comes to a few millionths.
    fewest, most = (transformers_probabilities(logits, options(p)) for p in (top_p - 3e-6, min(1, top_p + 3e-6)))
    assert ((fewest > 1e-30) <= (ours > 0)).all()  # below that, float32 has no weight
    assert ((ours > 0) <= (most > 0)).all()
    if np.array_equal(ours > 0, theirs > 0):
        np.testing.assert_allclose(ours, theirs, atol=5e-6)


def test_tokens_far_below_the_best_still_count_where_top_p_needs_them() -> None:
    logits = np.full(200_000, -14.5, dtype=np.float32)
    logits[17] = 0.0  # holds 0.91; the others are far out of the first look
    ids, weights = distribution(logits, SamplingOptions(temperature=1, top_p=0.95))
    assert ids[0] == 17
    assert weights.sum(dtype=np.float64) / (1 + 199_999 * np.exp(-14.5)) == pytest.approx(0.95, abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    weights=arrays(np.float32, st.integers(1, 200), elements=st.sampled_from([0.0, 1.0, 0.25, 1e-6, 3.0])),
    point=st.floats(0, 1, exclude_max=True),
)
def test_drawing_in_blocks(weights: Array, point: float) -> None:
    """As one by one, but for rounding; and never what has no weight."""
    weights[len(weights) // 2] = 1.0
    position = draw(weights, point)
    edges = np.concatenate([[0.0], np.cumsum(weights, dtype=np.float64)]) / weights.sum(dtype=np.float64)
    assert weights[position] > 0
    assert edges[position] - 1e-12 <= point <= edges[position + 1] + 1e-12


@pytest.mark.parametrize("vocab_size", [63, 64, 5000, 65024])
@pytest.mark.parametrize("top_k", [1, 2, 50, 70])
def test_top_k_of_large_vocabularies(vocab_size: int, top_k: int) -> None:
    random = np.random.default_rng(vocab_size + top_k)
    for logits in (random.normal(0, 3, vocab_size), np.round(random.normal(0, 3, vocab_size)), np.arange(vocab_size)):
        ids, _ = distribution(logits.astype(np.float32), SamplingOptions(temperature=1, top_k=top_k))
        threshold = np.sort(logits)[-min(top_k, vocab_size)]
        assert np.array_equal(ids, np.flatnonzero(logits >= threshold))


def test_ties() -> None:
    logits = np.array([1, 3, 3, 0, 3], dtype=np.float32)
    assert Sampler(SamplingOptions()).sample(logits) == 1
    kept = probabilities(logits, SamplingOptions(temperature=1, top_k=1))
    np.testing.assert_allclose(kept, [0, 1 / 3, 1 / 3, 0, 1 / 3])
    ids, _ = distribution(logits, SamplingOptions(temperature=1, top_p=0.5))
    assert list(ids) == [1, 2]


def test_repetition_penalty() -> None:
    logits = np.array([2.0, -1.0, 1.9, 0.0], dtype=np.float32)
    np.testing.assert_allclose(penalize(logits, {0, 1, 3}, 2.0), [1.0, -2.0, 1.9, 0.0])
    assert list(logits) == [2.0, -1.0, np.float32(1.9), 0.0]
    sampler = Sampler(SamplingOptions(repetition_penalty=1.5), [1])
    assert [sampler.sample(logits) for _ in range(4)] == [0, 2, 0, 0]
    alone = Sampler(SamplingOptions(repetition_penalty=1.5))
    assert alone.sample(logits) == 0 and alone.sample(logits) == 2


def test_the_penalty_comes_before_the_temperature() -> None:
    logits = np.array([2.0, 1.0, 0.5], dtype=np.float32)
    options = SamplingOptions(temperature=0.5, repetition_penalty=4.0, seed=1)
    sampler = Sampler(options, [0])
    wanted = np.exp(np.array([0.5, 1.0, 0.5]) / 0.5)
    # Only the first draw has this history; so many samplers, one draw each.
    draws = [Sampler(SamplingOptions(temperature=0.5, repetition_penalty=4.0, seed=s), [0]) for s in range(4000)]
    counts = np.bincount([each.sample(logits) for each in draws], minlength=3)
    np.testing.assert_allclose(counts / 4000, wanted / wanted.sum(), atol=0.03)
    assert sampler.sample(logits) in range(3)


def test_presence_and_frequency_penalties_by_hand() -> None:
    logits = np.array([2.0, 1.75, -1.0, 1.5], dtype=np.float32)
    once = Sampler(SamplingOptions(presence_penalty=0.375), [1])
    # The prompt does not count, and a second time costs no more: 2, 1.75, then 1.625 beside 1.375 again and again.
    assert [once.sample(logits) for _ in range(4)] == [0, 1, 0, 0]
    each = Sampler(SamplingOptions(frequency_penalty=0.375), [1])
    # 2 | 1.75, 1.625 | 1.625, 1.5 | 1.5 (the third), 1.375, 1.25
    assert [each.sample(logits) for _ in range(5)] == [0, 1, 0, 3, 1]
    rewarded = Sampler(SamplingOptions(presence_penalty=-2.0, logit_bias={2: 2.875, 3: -100.0}))
    # -1 + 2.875 = 1.875 never beats 2, which then counts as 4.
    assert [rewarded.sample(logits) for _ in range(3)] == [0, 0, 0]
    assert Sampler(SamplingOptions(logit_bias={2: 3.125})).sample(logits) == 2
    assert logits.tolist() == [2.0, 1.75, -1.0, 1.5]


@settings(max_examples=60, deadline=None)
@given(
    presence=st.integers(-16, 16).map(lambda n: n / 8),
    frequency=st.integers(-16, 16).map(lambda n: n / 8),
    bias=st.dictionaries(st.integers(0, 9), st.integers(-800, 800).map(lambda n: n / 8), max_size=4),
    repetition=st.sampled_from([1.0, 2.0, 0.5]),
    seed=st.integers(0, 99),
)
def test_penalties_are_their_definition(
    presence: float, frequency: float, bias: dict[int, float], repetition: float, seed: int
) -> None:
    """In eighths, which no float rounds: the same choices as from the formula, token by token."""
    options = SamplingOptions(
        presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias, repetition_penalty=repetition
    )
    sampler, random, answer = Sampler(options, [3]), np.random.default_rng(seed), []
    for _ in range(40):
        logits = (random.integers(-80, 80, 10) / 8).astype(np.float32)
        said = {3, *answer}
        wanted = [
            float(value) * ((repetition if value < 0 else 1 / repetition) if token in said else 1)
            + bias.get(token, 0)
            - frequency * answer.count(token)
            - presence * (token in answer)
            for token, value in enumerate(logits)
        ]
        answer.append(sampler.sample(logits))
        assert answer[-1] == int(np.argmax(wanted))


def test_draws_with_penalties_follow_their_distribution() -> None:
    options = [
        SamplingOptions(temperature=0.5, frequency_penalty=0.5, presence_penalty=0.5, seed=s) for s in range(4000)
    ]
    pairs = [(sampler.sample(LOGITS), sampler.sample(LOGITS)) for sampler in map(Sampler, options)]
    after = [second for first, second in pairs if first == 0]
    weights = np.exp((LOGITS - np.array([1, 0, 0, 0, 0])) / 0.5)
    np.testing.assert_allclose(np.bincount(after, minlength=5) / len(after), weights / weights.sum(), atol=0.04)


def test_penalties_leave_no_memory_behind() -> None:
    import tracemalloc

    logits = np.zeros(20_000, dtype=np.float32)
    sampler = Sampler(SamplingOptions(presence_penalty=0.5, frequency_penalty=0.25))
    for _ in range(3000):
        sampler.sample(logits)
    tracemalloc.start()
    try:
        for _ in range(50):
            sampler.sample(logits)
        # A number for each token of the answer that is new; the array of the vocabulary would be 80 kB.
        assert tracemalloc.get_traced_memory()[1] < 40_000
    finally:
        tracemalloc.stop()


@settings(max_examples=100, deadline=None)
@given(
    logits=arrays(np.float32, st.integers(1, 300), elements=st.integers(-80, 80).map(lambda n: n / 4)),
    count=st.integers(0, 20),
    seed=st.integers(0, 999),
)
def test_logprobs_are_a_plain_log_softmax(logits: Array, count: int, seed: int) -> None:
    """Of the model's own logits, whatever the options make of them; equal ones in the order of their ids."""
    options = SamplingOptions(temperature=0.3, top_k=5, presence_penalty=2.0, logit_bias={0: -100.0}, seed=seed)
    sampler = Sampler(options, logprobs=count)
    tokens = [sampler.sample(logits) for _ in range(3)]
    expected = torch.log_softmax(torch.from_numpy(logits.astype(np.float64)), dim=0).numpy()
    assert len(sampler.noted) == 3
    for token, noted in zip(tokens, sampler.noted, strict=True):
        assert noted.chosen == pytest.approx(expected[token], abs=1e-5)
        order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[:count]
        assert [token for token, _ in noted.top] == order
        assert [value for _, value in noted.top] == pytest.approx(expected[order].tolist(), abs=1e-5)


def test_what_is_too_close_to_tell_is_not_noted() -> None:
    sampler = Sampler(SamplingOptions(), logprobs=1)
    assert sampler.sample_clear(np.array([1.0, 1.001], dtype=np.float32), 0.01) is None
    assert sampler.noted == []
    assert sampler.sample_clear(np.array([1.0, 3.0], dtype=np.float32), 0.01) == 1
    assert [noted.top[0][0] for noted in sampler.noted] == [1]


def test_rounding_counts_as_it_was_before_penalties() -> None:
    """Two logits of 100 that are a tenth apart are no clearer for having been brought down to 0."""
    logits = np.array([100.0, 99.9, -5.0], dtype=np.float32)
    bias = {0: -100.0, 1: -100.0}
    assert Sampler(SamplingOptions(logit_bias=bias)).sample_clear(logits, 0.002) is None
    assert Sampler(SamplingOptions(logit_bias=bias)).sample_clear(logits, 0.0005) == 0


def test_seeds() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1, seed=seed))
        return [sampler.sample(LOGITS) for _ in range(60)]

    assert draw(5) == draw(5) != draw(6)
    assert draw(None) != draw(None)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_numbers_that_are_none(bad: float, temperature: float) -> None:
    logits = LOGITS.copy()
    logits[3] = bad
    with pytest.raises(BackendError, match=f"{bad}.*token 3"):
        Sampler(SamplingOptions(temperature=temperature)).sample(logits)
    logits[:] = -np.inf
    with pytest.raises(BackendError, match="-inf"):
        Sampler(SamplingOptions(temperature=temperature)).sample(logits)


def test_minus_infinity_is_never_drawn() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0], dtype=np.float32)
    for options in ({"top_p": 0.99}, {"top_k": 3}, {}):
        sampler = Sampler(SamplingOptions(temperature=1, seed=0, **options))
        assert {sampler.sample(logits) for _ in range(50)} == {1, 3}


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e6, 1e300])
def test_extreme_temperatures(temperature: float) -> None:
    logits = np.array([-3e38, 5, 4.999, 3e38], dtype=np.float32)
    for top_p in (1.0, 0.9):
        token = Sampler(SamplingOptions(temperature=temperature, top_p=top_p, seed=3)).sample(logits)
        assert token in range(4) if temperature > 1 else token == 3


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": np.nan}, "temperature"),
        ({"temperature": np.inf}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": -1}, "repetition_penalty"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"presence_penalty": np.nan}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"frequency_penalty": "1"}, "frequency_penalty"),
        ({"logit_bias": {1: 101}}, "logit_bias"),
        ({"logit_bias": {-1: 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_options_out_of_range(values: dict[str, object], name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} must be"):
        SamplingOptions(**values)  # type: ignore[arg-type]
