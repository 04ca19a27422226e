"""Speculation: the same answers in fewer passes, whatever the drafter does, and what is left behind."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.drafting import Propose, Scripted, TableEngine, random_table
from tests.torch_session import TorchBuffer, open_session, random_decoder, tiny_config

from tpudeploy.contracts.backend import Session
from tpudeploy.contracts.drafter import Draft, Drafter, DraftRun
from tpudeploy.contracts.dtypes import Array, DType
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.errors import BackendError, UsageError
from tpudeploy.graph.decoder import Decoder
from tpudeploy.runtime.engine import Engine
from tpudeploy.runtime.generator import GenerationOptions, GenerationResult, TokenEvent, generate
from tpudeploy.runtime.prompt_lookup import PromptLookup
from tpudeploy.runtime.rounding import EXACT, Rounding
from tpudeploy.runtime.sampling import Sampler, SamplingOptions, distribution

torch.set_num_threads(1)
SEQ = 160
PLAN = NetPlan(
    seq_length=SEQ,
    prefill=(Stage(new_tokens=16, cache_length=SEQ),),
    decode_cache_lengths=(64, SEQ),
    verify=(Stage(new_tokens=8, cache_length=SEQ), Stage(new_tokens=4, cache_length=48)),
)
VOCAB = 101


class PricedEngine(Engine):
    """Does not measure what a verify pass costs: a busy machine must not decide how many there are."""

    def verify_extra(self) -> float:
        return 0.11


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return random_decoder(tiny_config(num_layers=2))


def run(engine: Engine | TableEngine, prompt: Sequence[int], options: GenerationOptions) -> GenerationResult:
    generation = generate(engine, prompt, options)
    events = list(generation)
    assert [event.index for event in events] == list(range(len(events)))
    assert tuple(event.token_id for event in events) == generation.result.token_ids
    return generation.result


def oracle(answer: Sequence[int], prompt_tokens: int, *, wrong: float = 0.0, seed: int = 0) -> Scripted:
    """Knows the answer, and spoils tokens of its drafts at random."""
    chance = np.random.default_rng(seed)

    def propose(seen: list[int], limit: int) -> list[int]:
        at = len(seen) - prompt_tokens
        ids = list(answer[at : at + limit])
        return [(token + 1) % VOCAB if chance.random() < wrong else token for token in ids]

    return Scripted(propose)


def both(engine: Engine | TableEngine, prompt: Sequence[int], drafter: Drafter, **options: object) -> GenerationResult:
    """Generate without drafts and with them, each over an empty cache; the results must agree."""
    plain_options = GenerationOptions(drafter=None, **options)  # type: ignore[arg-type]
    engine.forget()
    plain = run(engine, prompt, plain_options)
    held = engine.cache.ids if isinstance(engine, Engine) else tuple(engine.held)
    engine.forget()
    drafted = run(engine, prompt, GenerationOptions(drafter=drafter, **options))  # type: ignore[arg-type]
    assert drafted.token_ids == plain.token_ids
    assert (drafted.finish_reason, drafted.stop_id) == (plain.finish_reason, plain.stop_id)
    assert (engine.cache.ids if isinstance(engine, Engine) else tuple(engine.held)) == held
    assert drafted.draft_problem == ""
    return drafted


# Greedy answers


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingOptions(),
        SamplingOptions(repetition_penalty=1.3),
        SamplingOptions(presence_penalty=1.5),
        SamplingOptions(frequency_penalty=0.7, logit_bias={5: 3.0, 9: -100.0}),
        SamplingOptions(frequency_penalty=-0.5, presence_penalty=1.0, repetition_penalty=1.1),
    ],
    ids=["plain", "repetition", "presence", "frequency and bias", "all"],
)
def test_greedy_answers_to_random_prompts_are_identical(decoder: Decoder, sampling: SamplingOptions) -> None:
    """Thousands of tokens of a tiny random model, drafted by lookup and by one who is often right."""
    engine = PricedEngine(open_session(decoder, PLAN))
    random = np.random.default_rng(10)
    accepted = 0
    for trial in range(6):
        prompt = [int(token) for token in random.integers(0, VOCAB, random.integers(1, 60))]
        engine.forget()
        answer = run(engine, prompt, GenerationOptions(drafter=None, sampling=sampling)).token_ids
        drafters: tuple[Drafter, ...] = (PromptLookup(), oracle(answer, len(prompt), wrong=0.2, seed=trial))
        for drafter in drafters:
            engine.forget()
            result = run(engine, prompt, GenerationOptions(drafter=drafter, sampling=sampling))
            assert result.token_ids == answer, trial
            accepted += result.drafts.accepted
    assert accepted > 500


class CoarseEngine(PricedEngine):
    """Verify passes that round like a chip, only more so: logits and cached rows are off by some thousandths."""

    noise = 2e-3
    presumed = 0.05

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._rounding = Rounding(self.presumed)

    def verify(self, ids: Sequence[int]) -> Array:
        self._noise = np.random.default_rng(len(self.cache.ids))
        logits = super().verify(ids)
        return logits * (1 + self.noise * self._noise.standard_normal(logits.shape)).astype(np.float32)

    def accept(self, ids: Sequence[int]) -> None:
        start = self.cache.length
        super().accept(ids)
        for layer in range(self.nets.config.num_layers):
            row_bytes = self.cache.row_bytes(layer, 0)
            for view in self.cache.views(layer, 0, 1):
                assert isinstance(view.buffer, TorchBuffer)
                rows = view.buffer.data[start * row_bytes : self.cache.length * row_bytes].view(np.float32)
                rows *= 1 + self.noise * self._noise.standard_normal(rows.shape).astype(np.float32)


@pytest.mark.parametrize("sampling", [SamplingOptions(), SamplingOptions(frequency_penalty=0.5, presence_penalty=-1)])
def test_rounding_of_verify_nets_changes_no_greedy_answer(decoder: Decoder, sampling: SamplingOptions) -> None:
    """With noise that would flip many a token if near equals were not told apart."""
    flipped = recomputed = 0
    random = np.random.default_rng(5)
    careful, careless = CoarseEngine(open_session(decoder, PLAN)), CoarseEngine(open_session(decoder, PLAN))
    for trial in range(8):
        prompt = [int(token) for token in random.integers(0, VOCAB, random.integers(2, 50))]
        careful.forget()
        answer = run(careful, prompt, GenerationOptions(drafter=None, sampling=sampling)).token_ids
        drafter = oracle(answer, len(prompt), wrong=0.05, seed=trial)
        result = both(careful, prompt, drafter, sampling=sampling)
        recomputed += result.drafts.recomputed
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CoarseEngine, "rounding", EXACT)
            careless.forget()
            options = GenerationOptions(drafter=drafter, sampling=sampling)
            flipped += run(careless, prompt, options).token_ids != answer
    assert recomputed > 30, "nothing was ever close"
    assert flipped > 1, "the noise would not have mattered"


def test_a_conversation_of_several_turns_is_identical(decoder: Decoder) -> None:
    """Rows that drafts left in the cache are made again in the passes of the turn that they belong to."""
    for seed in range(3):
        said: list[list[int]] = []
        for drafts in (False, True):
            random = np.random.default_rng(seed)
            engine = CoarseEngine(open_session(decoder, PLAN))
            ids: list[int] = []
            for turn in range(5):
                ids += [int(token) for token in random.integers(0, VOCAB, 11)]
                known = said[0][len(ids) :] if drafts else []
                drafter = oracle(known, len(ids)) if drafts else None
                options = GenerationOptions(drafter=drafter, max_new_tokens=14 + turn)
                ids += run(engine, ids, options).token_ids
            said.append(ids)
        assert said[0] == said[1], seed


def test_what_is_recomputed_is_just_as_without_drafts(decoder: Decoder) -> None:
    """To the last bit: rows of prompt, answers and later prompts, each in a pass of the same width."""
    random = np.random.default_rng(1)
    prompt, answer, more = ([int(token) for token in random.integers(0, VOCAB, count)] for count in (21, 12, 19))
    plain, drafted = (CoarseEngine(open_session(decoder, PLAN)) for _ in range(2))
    for engine in (plain, drafted):
        engine.forward(prompt)
    for token in answer:
        plain.forward([token])
    for start in (0, 5):
        drafted.verify(answer[start : start + 6])
        drafted.accept(answer[start : start + 5])
    drafted.forward(answer[10:11])
    drafted.forward(answer[11:])
    wanted, other = (engine.forward(more, rows=1)[0] for engine in (plain, drafted))
    assert (plain.pending, drafted.pending) == (0, 14)
    assert not np.array_equal(other, wanted)
    passes = list(drafted.settle({21 + 12 + 19 - 1}))
    assert [settled.tokens for settled in passes] == [1] * 12 + [16, 3]
    assert [settled.last for settled in passes] == [*range(21, 33), 48, 51]
    assert [settled.logits is not None for settled in passes] == [False] * 13 + [True]
    assert np.array_equal(passes[-1].logits, wanted)
    assert drafted.pending == 0 and drafted.cache.ids == plain.cache.ids
    probe = [7]
    assert np.array_equal(plain.forward(probe), drafted.forward(probe))


# How answers end, and what they leave behind


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    seq_length=st.integers(4, 40),
    width=st.integers(2, 9),
    sampling=st.sampled_from([SamplingOptions(), SamplingOptions(repetition_penalty=1.5, frequency_penalty=0.4)]),
)
def test_stops_limits_and_the_cache(
    data: st.DataObject, seq_length: int, width: int, sampling: SamplingOptions
) -> None:
    engine = TableEngine(random_table(VOCAB), width=width, seq_length=seq_length)
    prompt = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=seq_length))
    options = {
        "sampling": sampling,
        "max_new_tokens": data.draw(st.none() | st.integers(1, 30)),
    }
    answer = run(engine, prompt, GenerationOptions(drafter=None, **options)).token_ids  # type: ignore[arg-type]
    stops = frozenset(data.draw(st.lists(st.sampled_from(answer), max_size=2)))
    drafter = oracle(answer, len(prompt), wrong=data.draw(st.sampled_from([0.0, 0.1, 0.5])))
    result = both(engine, prompt, drafter, stop_ids=stops, **options)
    assert sum(accepted for _, accepted in drafter.judged) == result.drafts.accepted <= result.drafts.drafted
    shown = [*result.token_ids, *([result.stop_id] if result.stop_id is not None else [])]
    assert drafter.seen in ([*prompt, *shown], [])
    # A pass whose last accepted token ends the answer brings no other one.
    assert len(shown) - 1 - result.drafts.passes - result.drafts.accepted in (0, -1)


def test_a_perfect_drafter_fills_every_pass() -> None:
    engine = TableEngine(random_table(VOCAB), seq_length=400)
    answer = run(engine, [1], GenerationOptions(drafter=None, max_new_tokens=161)).token_ids
    engine.passes.clear()
    result = both(engine, [1], oracle(answer, 1), max_new_tokens=161)
    assert engine.passes[-20:] == [8] * 20
    assert result.tokens_per_pass == 8.0
    assert (result.drafts.passes, result.drafts.verify_passes, result.drafts.accepted) == (20, 20, 140)


def test_cancelled_between_passes() -> None:
    engine = TableEngine(random_table(VOCAB))
    answer = run(engine, [1], GenerationOptions(drafter=None, max_new_tokens=30)).token_ids
    engine.forget()
    asked = itertools.count()
    drafter = oracle(answer, 1)
    generation = generate(engine, [1], GenerationOptions(drafter=drafter), cancelled=lambda: next(asked) >= 3)
    tokens = [event.token_id for event in generation]
    assert tokens == list(answer[:17])  # one, then eight of each pass
    assert generation.result.finish_reason == "cancelled"
    assert engine.held == [1, *answer[:16]]


def test_closed_in_the_middle_of_a_pass() -> None:
    engine = TableEngine(random_table(VOCAB))
    answer = run(engine, [1], GenerationOptions(drafter=None, max_new_tokens=30)).token_ids
    engine.forget()
    generation = generate(engine, [1], GenerationOptions(drafter=oracle(answer, 1)))
    assert [next(generation).token_id for _ in range(4)] == list(answer[:4])
    generation.close()
    assert list(generation) == []
    assert generation.result.token_ids == answer[:4]
    assert run(engine, [1], GenerationOptions(max_new_tokens=30)).token_ids == answer


def test_another_answer_in_between() -> None:
    engine = TableEngine(random_table(VOCAB))
    alone = run(engine, [1], GenerationOptions(drafter=None, max_new_tokens=30)).token_ids
    other = run(engine, [9, 1], GenerationOptions(drafter=None, max_new_tokens=30)).token_ids
    first = generate(engine, [1], GenerationOptions(drafter=oracle(alone, 1), max_new_tokens=30))
    second = generate(engine, [9, 1], GenerationOptions(drafter=oracle(other, 2), max_new_tokens=30))
    pairs = [(one.token_id, two.token_id) for one, two in zip(first, second, strict=True)]
    assert (tuple(one for one, _ in pairs), tuple(two for _, two in pairs)) == (alone, other)


def test_an_interrupt_in_a_verify_pass(decoder: Decoder) -> None:
    session = open_session(decoder, PLAN)
    engine = PricedEngine(session)
    prompt = [3, 1, 4, 1, 5]
    answer = run(engine, prompt, GenerationOptions(drafter=None, max_new_tokens=40)).token_ids
    for error in (KeyboardInterrupt(), BackendError("no")):
        engine.forget()
        generation = generate(engine, prompt, GenerationOptions(drafter=oracle(answer, 5), max_new_tokens=40))
        tokens = [next(generation).token_id for _ in range(9)]

        def interrupt(name: str, error: BaseException = error) -> None:
            if name.startswith("block_verify_1"):
                raise error

        session.before_launch = interrupt
        with pytest.raises(type(error)):
            list(generation)
        session.before_launch = lambda name: None
        assert tokens == list(answer[:9])
        assert engine.cache.ids == (*prompt, *answer)[: engine.cache.length]
        options = GenerationOptions(drafter=oracle(answer, 5), max_new_tokens=40)
        assert run(engine, prompt, options).token_ids == answer


def test_an_engine_that_verifies_nothing(decoder: Decoder) -> None:
    plan = PLAN.model_copy(update={"verify": ()})
    engine = Engine(open_session(decoder, plan))
    drafter = Scripted(lambda seen, limit: [1])
    result = run(engine, [1, 2, 3], GenerationOptions(drafter=drafter, max_new_tokens=9))
    assert (result.drafts.passes, result.drafts.drafted, drafter.seen) == (8, 0, [])
    assert engine.draft_limit() == 0 and engine.verify_extra() is None
    with pytest.raises(UsageError, match="no pass verifies"):
        engine.verify([1, 2])


# Sampling


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingOptions(temperature=1.0),
        SamplingOptions(temperature=0.7, top_k=12, top_p=0.9, repetition_penalty=1.2),
        SamplingOptions(temperature=2.0, top_p=0.5),
        SamplingOptions(temperature=1.2, presence_penalty=0.8, frequency_penalty=0.3, logit_bias={4: 2.0}),
    ],
)
def test_seeded_draws_are_identical(decoder: Decoder, sampling: SamplingOptions) -> None:
    """The n-th token takes the n-th random number, whichever pass computes it."""
    table = TableEngine(random_table(VOCAB))
    network = PricedEngine(open_session(decoder, PLAN))
    accepted = 0
    for seed in range(6):
        seeded = SamplingOptions(**{**vars(sampling), "seed": seed})
        for engine, prompt in ((table, [1, 2]), (network, [5, 6, 7, seed])):
            engine.forget()
            known = run(engine, prompt, GenerationOptions(drafter=None, max_new_tokens=40, sampling=seeded)).token_ids
            drafter = oracle(known, len(prompt), wrong=0.3, seed=seed)
            accepted += both(engine, prompt, drafter, max_new_tokens=40, sampling=seeded).drafts.accepted
    assert accepted > 150


@pytest.mark.parametrize("drafted", [(0, 0), (1, 2), (3, 3)])
def test_every_point_of_the_unit_interval_gives_the_same_tokens(drafted: tuple[int, int]) -> None:
    """Exact, on a small vocabulary: the pairs that points of a fine grid are mapped to, with and without drafts."""
    logits = random_table(4, seed=3)
    options = SamplingOptions(temperature=0.9, top_p=0.95)
    grid = (np.arange(20) + 0.5) / 20

    class Points:
        def __init__(self, points: Sequence[float]) -> None:
            self._points = iter(points)

        def random(self) -> float:
            return next(self._points)

    def pair(points: tuple[float, float], drafter: Drafter | None) -> tuple[int, ...]:
        engine = TableEngine(logits, extra=0.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np.random, "default_rng", lambda seed: Points((0.5, *points)))
            settings_ = GenerationOptions(drafter=drafter, sampling=options, max_new_tokens=3)
            return run(engine, [2], settings_).token_ids[1:]

    drafter = Scripted(lambda seen, limit: drafted[:limit])
    for points in itertools.product(grid, grid):
        assert pair(points, drafter) == pair(points, None)
    assert drafter.judged, "nothing was drafted"


@pytest.mark.parametrize(("rank", "rights"), [(0, 1000), (1, 300), (3, 20)])
def test_drawn_answers_have_the_models_distribution(rank: int, rights: int) -> None:
    """Chi-square over 3000 answers of three tokens, whose drafts are likely tokens, less likely ones, or the least."""
    logits, draws = random_table(4, seed=8), 3000
    options = SamplingOptions(temperature=2.5)

    def propose(seen: list[int], limit: int) -> list[int]:
        ids = list(seen)
        for _ in range(limit):
            ids.append(int(np.argsort(-logits(tuple(ids)))[rank]))
        return ids[len(seen) :]

    counts = dict.fromkeys(itertools.product(range(4), repeat=3), 0)
    engine, accepted = TableEngine(logits, extra=0.0), 0
    for seed in range(draws):
        sampling = SamplingOptions(temperature=2.5, seed=seed)
        engine.forget()
        result = run(engine, [2], GenerationOptions(drafter=Scripted(propose), sampling=sampling, max_new_tokens=3))
        counts[result.token_ids] += 1  # type: ignore[index]
        accepted += result.drafts.accepted
    expected = {}
    for ids in counts:
        steps = [(2, *ids[:length]) for length in range(3)]
        expected[ids] = draws * np.prod(
            [_chance(logits(seen), token, options) for seen, token in zip(steps, ids, strict=True)]
        )
    common = [ids for ids in counts if expected[ids] >= 5]
    found = np.array([*(counts[ids] for ids in common), draws - sum(counts[ids] for ids in common)])
    wanted = np.array([*(expected[ids] for ids in common), draws - sum(expected[ids] for ids in common)])
    chi_square, freedom = float((np.square(found - wanted) / wanted).sum()), len(common)
    # Wilson and Hilferty's approximation of the quantile above which 0.1 % of all samples lie.
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert accepted > rights


def _chance(logits: Array, token: int, options: SamplingOptions) -> float:
    ids, weights = distribution(logits, options)
    return float(weights[ids == token].sum() / weights.sum())


# Log-probabilities


def log_softmax(logits: Array) -> Array:
    values: Array = torch.log_softmax(torch.from_numpy(np.asarray(logits, dtype=np.float64)), dim=-1).numpy()
    return values


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_with_drafts_are_those_of_the_rows_that_were_chosen_from(temperature: float) -> None:
    table = random_table(VOCAB)
    sampling = SamplingOptions(temperature=temperature, frequency_penalty=0.3, seed=4)
    known = run(TableEngine(table), [1], GenerationOptions(drafter=None, max_new_tokens=40, sampling=sampling))
    drafter = oracle(known.token_ids, 1, wrong=0.2)
    stops = frozenset([known.token_ids[-1]]) - set(known.token_ids[:-1])
    options = GenerationOptions(
        drafter=drafter, max_new_tokens=40, sampling=sampling, logprobs=3, stop_ids=frozenset(stops)
    )
    generation, ids = generate(TableEngine(table), [1], options), [1]
    for event in generation:
        expected = log_softmax(table(tuple(ids)))
        assert event.logprobs is not None
        assert event.logprobs.chosen == pytest.approx(expected[event.token_id], abs=1e-5)
        assert [token for token, _ in event.logprobs.top] == np.argsort(-expected)[:3].tolist()
        ids.append(event.token_id)
    assert generation.result.drafts.accepted > 10


def test_logprobs_of_settled_rows_are_those_without_drafts(decoder: Decoder) -> None:
    """Where rows were made again, to the last bit; elsewhere within the noise of the verify pass."""
    engine = CoarseEngine(open_session(decoder, PLAN))
    exact = recomputed = 0
    for seed in range(4):
        prompt = [int(token) for token in np.random.default_rng(seed).integers(0, VOCAB, 20)]
        engine.forget()
        plain = list(generate(engine, prompt, GenerationOptions(drafter=None, logprobs=2)))
        drafter = oracle([event.token_id for event in plain], 20, wrong=0.05, seed=seed)
        engine.forget()
        generation = generate(engine, prompt, GenerationOptions(drafter=drafter, logprobs=2))
        last: dict[float, tuple[TokenEvent, bool]] = {}  # of each pass, by its time
        for event in generation:
            wanted = plain[event.index].logprobs
            assert event.logprobs is not None and wanted is not None
            assert event.logprobs.chosen == pytest.approx(wanted.chosen, abs=0.3)
            last[event.elapsed_s] = (event, engine.pending == 0)
        for event, settled in last.values():
            if settled:
                assert event.logprobs == plain[event.index].logprobs
                exact += 1
        recomputed += generation.result.drafts.recomputed
    assert exact > 5 and recomputed > 30


def test_a_pass_that_failed_leaves_no_logprobs_to_the_next() -> None:
    table = random_table(VOCAB)
    engine = TableEngine(table)
    answer = run(engine, [1], GenerationOptions(drafter=None, max_new_tokens=40)).token_ids
    engine.forget()
    generation = generate(engine, [1], GenerationOptions(drafter=oracle(answer, 1), logprobs=0))
    next(generation)
    with pytest.MonkeyPatch.context() as patch:

        def fail(ids: Sequence[int]) -> None:
            raise BackendError("no")

        patch.setattr(engine, "accept", fail)
        with pytest.raises(BackendError):
            next(generation)
    ids = [1, *answer[:9]]  # eight were chosen in the pass that failed
    for event in itertools.islice(generation, 20):
        assert event.token_id == answer[len(ids) - 1] and event.logprobs is not None
        assert event.logprobs.chosen == pytest.approx(log_softmax(table(tuple(ids)))[event.token_id], abs=1e-5)
        ids.append(event.token_id)


def test_a_choice_that_is_too_close_changes_nothing() -> None:
    logits = np.array([1.0, 7.0, 7.001, -3.0], dtype=np.float32)
    sampler = Sampler(SamplingOptions(repetition_penalty=1.2), [0])
    assert sampler.sample_clear(logits, 1e-3) is None
    assert logits.tolist() == pytest.approx([1.0, 7.0, 7.001, -3.0])
    assert sampler.sample_clear(logits, 1e-5) == 2
    assert sampler.sample_clear(logits, 1e-3) == 1, "2 counts as seen now, and is penalized"
    drawn = Sampler(SamplingOptions(temperature=1, seed=1))
    assert drawn.sample_clear(logits, 0.5) in range(4)


# Drafters of others


class Failing(Drafter):
    """Fails, in one way or another."""

    name = "failing"

    def __init__(self, where: str, what: object) -> None:
        self.where, self.what = where, what

    def begin(self) -> DraftRun:
        if self.where == "begin":
            raise RuntimeError("no")
        return _FailingRun(self.where, self.what)


class _FailingRun(DraftRun):
    def __init__(self, where: str, what: object) -> None:
        self._where, self._what = where, what

    def extend(self, ids: Sequence[int]) -> None:
        if self._where == "extend":
            raise KeyError("no")

    def propose(self, limit: int) -> Draft | None:
        if self._where == "propose":
            raise OSError("no")
        return self._what if self._where == "draft" else Draft((1,) * limit)  # type: ignore[return-value]

    def judge(self, draft: Draft, accepted: int) -> None:
        raise ValueError("no")


@pytest.mark.parametrize(
    ("where", "what", "message"),
    [
        ("begin", None, "RuntimeError: no"),
        ("extend", None, "KeyError: 'no'"),
        ("propose", None, "OSError: no"),
        ("judge", None, "ValueError: no"),
        ("draft", Draft((VOCAB,)), f"not between 0 and {VOCAB - 1}"),
        ("draft", Draft((5, -1)), "not between 0"),
        ("draft", Draft((1,) * 8), "8 tokens where 7"),
        ("draft", Draft((1.5,)), "TypeError"),  # type: ignore[arg-type]
        ("draft", Draft(("x",)), "TypeError"),  # type: ignore[arg-type]
        ("draft", Draft(None), "TypeError"),  # type: ignore[arg-type]
        ("draft", [1, 2], "must be a Draft"),
        ("draft", Draft((1,), "good"), "must be a Draft"),  # type: ignore[arg-type]
    ],
)
def test_a_drafter_that_fails_is_not_asked_again(where: str, what: object, message: str) -> None:
    engine = TableEngine(random_table(VOCAB))
    wanted = run(engine, [1, 2], GenerationOptions(drafter=None))
    result = run(engine, [1, 2], GenerationOptions(drafter=Failing(where, what)))
    assert result.token_ids == wanted.token_ids
    assert message in result.draft_problem and "the drafter failing failed" in result.draft_problem
    assert result.drafts.verify_passes <= 1


@pytest.mark.parametrize("ids", [(), (np.int64(3), 4)])
def test_unusual_drafts_that_are_fine(ids: tuple[int, ...]) -> None:
    engine = TableEngine(random_table(VOCAB))
    both(engine, [1, 2], Scripted(lambda seen, limit: ids[:limit]))


def test_an_enormous_class_of_evidence() -> None:
    class Odd(Drafter):
        name = "odd"

        def begin(self) -> DraftRun:
            return _Odd()

    class _Odd(DraftRun):
        def extend(self, ids: Sequence[int]) -> None: ...

        def propose(self, limit: int) -> Draft | None:
            return Draft((1,), 10**30)

    both(TableEngine(random_table(VOCAB)), [1, 2], Odd())


# Costs


def wrong(seen: list[int], limit: int) -> list[int]:
    """Never what comes next: the chain goes up by one, the draft says 0 (and at 0, 5)."""
    return [5 if (seen[-1] + 1) % VOCAB == 0 else 0] * limit


def right_every(period: int) -> Propose:
    def propose(seen: list[int], limit: int) -> list[int]:
        right = [(seen[-1] + 1 + step) % VOCAB for step in range(limit)]
        return right if len(seen) % period == 0 else wrong(seen, limit)

    return propose


def rising(ids: tuple[int, ...]) -> Array:
    """A chain that counts upwards."""
    logits = np.zeros(VOCAB, dtype=np.float32)
    logits[(ids[-1] + 1 if ids else 0) % VOCAB] = 9.0
    return logits


def phases(seen: list[int], limit: int) -> list[int]:
    """Right for hundred tokens, wrong for hundred."""
    return right_every(1)(seen, limit) if len(seen) // 100 % 2 == 0 else wrong(seen, limit)


def first_only(seen: list[int], limit: int) -> list[int]:
    """One right token and wrong ones in every tenth draft."""
    return [*right_every(10)(seen, limit)[:1], *wrong(seen, limit)][:limit]


@pytest.mark.parametrize("extra", [0.05, 0.11, 0.22, 0.6, 2.0])
@pytest.mark.parametrize("propose", [wrong, right_every(3), right_every(20), first_only, phases])
def test_drafts_never_cost_more_than_five_percent(extra: float, propose: Propose) -> None:
    """In decode passes, by the cost of the passes that were run, for answers of every length."""
    for tokens in (2, 3, 5, 10, 20, 50, 200, 3000):
        engine = TableEngine(rising, seq_length=4096, extra=extra)
        result = run(engine, [1], GenerationOptions(drafter=Scripted(propose), max_new_tokens=tokens))
        plain = tokens - 1
        cost = result.drafts.passes + result.drafts.verify_passes * extra
        assert cost <= 1.04 * plain + min(extra, 1.0) + 1e-9
        if tokens >= 200:
            assert cost <= 1.05 * plain


def test_what_always_fails_is_hardly_tried() -> None:
    engine = TableEngine(rising, seq_length=4096)
    result = run(engine, [1], GenerationOptions(drafter=Scripted(wrong), max_new_tokens=3000))
    cost = result.drafts.passes + result.drafts.verify_passes * 0.11
    assert result.drafts.verify_passes > 0 and cost <= 1.02 * 2999


def test_what_begins_to_succeed_is_found_out() -> None:
    """After thousand tokens of nothing but wrong drafts."""

    def late(seen: list[int], limit: int) -> list[int]:
        return wrong(seen, limit) if len(seen) < 1000 else right_every(1)(seen, limit)

    engine = TableEngine(rising, seq_length=4096)
    result = run(engine, [1], GenerationOptions(drafter=Scripted(late), max_new_tokens=2000))
    assert result.drafts.passes < 1000 + 1000 / 8 + 60


def test_costs_are_clocked_where_no_cycles_are_known(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verify pass that takes as long as three others: drafts of one right token do not pay."""
    engine = TableEngine(rising, seq_length=4096)
    monkeypatch.setattr(TableEngine, "verify_extra", lambda self: None)
    now = [0.0]
    monkeypatch.setattr("tpudeploy.runtime.writer.time.perf_counter", lambda: now[0])
    for method, seconds in (("verify", 3.0), ("forward", 1.0)):
        original = getattr(TableEngine, method)

        def slow(self: TableEngine, *args: object, _run: object = original, _s: float = seconds, **kw: object) -> Array:
            now[0] += _s
            return _run(self, *args, **kw)  # type: ignore[operator,no-any-return]

        monkeypatch.setattr(TableEngine, method, slow)
    one = Scripted(lambda seen, limit: right_every(1)(seen, limit)[:1])
    result = run(engine, [1], GenerationOptions(drafter=one, max_new_tokens=2000))
    assert now[0] <= 1.05 * 2000
    assert 0 < result.drafts.verify_passes < 100


def test_cycles_of_a_bundle_say_what_a_pass_costs(decoder: Decoder) -> None:
    session = open_session(decoder, PLAN)
    engine = Engine(session)
    assert engine.verify_extra() is None
    cycles = {"embedding_cache": 1, "lm_head": 40, "embedding_s8": 2, "lm_head_s8": 50}
    cycles |= {f"block_cache_{i}{c}": 100 for i in range(2) for c in ("", "_c160")}
    cycles |= {f"block_verify_{i}": 120 for i in range(2)}
    info = session.manifest.compiler.model_copy(update={"cycles": cycles})
    session._manifest = session.manifest.model_copy(update={"compiler": info})
    assert engine.verify_extra() == pytest.approx((2 * 120 + 52) / (2 * 100 + 41) - 1)


@pytest.mark.parametrize("activation", [DType.F16, DType.BF16])
def test_the_margin_grows_with_type_and_depth(activation: DType) -> None:
    shallow, deep = (
        Engine(open_session(random_decoder(tiny_config(num_layers=layers)), PLAN, activation)) for layers in (1, 4)
    )
    assert deep.rounding.margin == 2 * shallow.rounding.margin > 0.001
