"""Generation: what comes out, how it ends, what it leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.torch_session import (
    TorchBuffer,
    TorchSession,
    open_session,
    random_decoder,
    reference_logits,
    tiny_config,
)

from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.errors import BackendError, SequenceTooLongError, UsageError
from tpudeploy.graph.decoder import Decoder
from tpudeploy.runtime.engine import Engine
from tpudeploy.runtime.generator import GenerationOptions, GenerationResult, generate
from tpudeploy.runtime.kv_cache import KvCache
from tpudeploy.runtime.sampling import SamplingOptions

torch.set_num_threads(1)
SEQ = 320
PLANS = [
    NetPlan(seq_length=SEQ, prefill=(Stage(new_tokens=16, cache_length=SEQ),)),
    NetPlan(
        seq_length=SEQ,
        prefill=tuple(
            Stage(new_tokens=new, cache_length=cache) for new, cache in ((64, 0), (8, 64), (32, SEQ), (128, SEQ))
        ),
        decode_cache_lengths=(64, SEQ),
        verify=(),
    ),
]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return random_decoder(tiny_config())


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return [int(token) for token in np.random.default_rng(11).integers(0, 101, SEQ + 1)]


def new_engine(decoder: Decoder, plan: int = 1) -> Engine:
    return Engine(open_session(decoder, PLANS[plan]))


def session_of(engine: Engine) -> TorchSession:
    assert isinstance(engine.session, TorchSession)
    return engine.session


def run(engine: Engine, prompt: Sequence[int], options: GenerationOptions) -> GenerationResult:
    generation = generate(engine, prompt, options)
    tokens = [event.token_id for event in generation]
    assert tuple(tokens) == generation.result.token_ids
    return generation.result


def assert_greedy(decoder: Decoder, prompt: Sequence[int], tokens: Sequence[int]) -> None:
    """Every token is the decoder's choice after those before it."""
    logits = reference_logits(decoder, [*prompt, *tokens][:-1])[len(prompt) - 1 :]
    best = logits.max(axis=1)
    chosen = logits[np.arange(len(tokens)), tokens]
    margin = np.sort(logits, axis=1)[:, -1] - np.sort(logits, axis=1)[:, -2]
    assert (best - chosen < 1e-3).all(), "not the likeliest token"
    clear = margin > 1e-3
    assert np.array_equal(logits.argmax(axis=1)[clear], np.array(tokens)[clear])


@pytest.mark.parametrize("plan", [0, 1])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 63, 64, 65, 127, 128, 129, 200, 300])
def test_greedy_tokens_are_the_decoders(decoder: Decoder, ids: list[int], plan: int, length: int) -> None:
    result = run(new_engine(decoder, plan), ids[:length], GenerationOptions(max_new_tokens=21))
    assert_greedy(decoder, ids[:length], result.token_ids)
    assert result.finish_reason == "length"
    assert len(result.token_ids) == 21
    assert result.prompt_tokens == length and result.reused_tokens == 0


@settings(max_examples=25, deadline=None)
@given(
    prompts=st.lists(st.tuples(st.integers(1, 250), st.integers(0, 250), st.integers(1, 12)), min_size=2, max_size=4)
)
def test_prompts_that_begin_alike(decoder: Decoder, ids: list[int], prompts: list[tuple[int, int, int]]) -> None:
    """Each prompt is a beginning of ``ids``, changed from some place on; one engine serves all of them."""
    shared = new_engine(decoder)
    held: list[int] = []
    for length, change, new_tokens in prompts:
        prompt = [*ids[:change], *((token + 1) % 101 for token in ids[change:])][:length]
        same = next((i for i, (a, b) in enumerate(zip(held, prompt, strict=False)) if a != b), min(len(held), length))
        result = run(shared, prompt, GenerationOptions(max_new_tokens=new_tokens))
        assert result.reused_tokens == min(same, length - 1)
        assert_greedy(decoder, prompt, result.token_ids)
        held = [*prompt, *result.token_ids][:-1]
        assert shared.cache.ids == tuple(held)


def test_only_what_differs_is_computed(decoder: Decoder, ids: list[int]) -> None:
    engine = new_engine(decoder)
    first = run(engine, ids[:100], GenerationOptions(max_new_tokens=5))
    session = session_of(engine)
    session.launched.clear()
    following = [*ids[:100], *first.token_ids, 7]
    result = run(engine, following, GenerationOptions(max_new_tokens=1))
    assert result.reused_tokens == 104
    assert [name for name in session.launched if name.startswith("block")] == [
        f"block_kv_{i}_s32_c320" for i in range(3)
    ]
    session.launched.clear()
    assert run(engine, following, GenerationOptions(max_new_tokens=1)).token_ids == result.token_ids
    assert session.launched[0] == "embedding_cache"  # the last token again, for its logits


@pytest.mark.parametrize(("length", "tokens"), [(SEQ, 1), (SEQ - 1, 2), (SEQ - 20, 21)])
@pytest.mark.parametrize("limit", [None, 10_000])
def test_the_length_limit(decoder: Decoder, ids: list[int], length: int, tokens: int, limit: int | None) -> None:
    engine = new_engine(decoder)
    result = run(engine, ids[:length], GenerationOptions(max_new_tokens=limit))
    assert (len(result.token_ids), result.finish_reason) == (tokens, "length")
    assert_greedy(decoder, ids[:length], result.token_ids)
    assert engine.cache.length == SEQ
    # And nothing is worn out.
    assert run(engine, ids[:length], GenerationOptions()).token_ids == result.token_ids


def test_a_prompt_that_is_too_long(decoder: Decoder, ids: list[int]) -> None:
    engine = new_engine(decoder)
    with pytest.raises(SequenceTooLongError, match=r"321 tokens, but this bundle holds 320\. Shorten .*--seq-length"):
        generate(engine, ids[: SEQ + 1])
    with pytest.raises(UsageError, match="empty"):
        generate(engine, [])
    with pytest.raises(UsageError, match="max_new_tokens"):
        GenerationOptions(max_new_tokens=0)
    with pytest.raises(UsageError, match="between 0 and 100"):
        next(generate(engine, [101]))
    assert run(engine, ids[:3], GenerationOptions(max_new_tokens=1)).finish_reason == "length"


def test_stop_ids(decoder: Decoder, ids: list[int]) -> None:
    engine = new_engine(decoder)
    plain = run(engine, ids[:9], GenerationOptions(max_new_tokens=30)).token_ids
    stop = next(token for token in plain[3:] if token not in plain[:3])
    place = plain.index(stop)
    options = GenerationOptions(max_new_tokens=30, stop_ids=frozenset((stop, 100)))
    result = run(engine, ids[:9], options)
    assert result.token_ids == plain[:place]
    assert (result.finish_reason, result.stop_id) == ("stop", stop)
    ignoring = GenerationOptions(max_new_tokens=30, stop_ids=frozenset((stop,)), ignore_eos=True)
    result = run(engine, ids[:9], ignoring)
    assert (result.token_ids, result.finish_reason, result.stop_id) == (plain, "length", None)


def test_a_stop_id_as_the_very_first_token(decoder: Decoder, ids: list[int]) -> None:
    engine = new_engine(decoder)
    first = run(engine, ids[:9], GenerationOptions(max_new_tokens=1)).token_ids[0]
    result = run(engine, ids[:9], GenerationOptions(stop_ids=frozenset((first,))))
    assert (result.token_ids, result.finish_reason, result.tokens_per_s) == ((), "stop", 0.0)
    assert result.first_token_s is not None


def test_events_and_times(decoder: Decoder, ids: list[int]) -> None:
    generation = generate(new_engine(decoder), ids[:9], GenerationOptions(max_new_tokens=4))
    assert generation.result.finish_reason == "cancelled" and generation.result.first_token_s is None
    events = list(generation)
    assert [event.index for event in events] == [0, 1, 2, 3]
    result = generation.result
    assert result.first_token_s == events[0].elapsed_s > 0
    assert result.elapsed_s == events[-1].elapsed_s > result.first_token_s
    assert result.tokens_per_s == pytest.approx(3 / (result.elapsed_s - result.first_token_s))
    assert list(generation) == [] and generation.result == result


@pytest.mark.parametrize("consumed", [0, 1, 5])
def test_closing_in_the_middle(decoder: Decoder, ids: list[int], consumed: int) -> None:
    engine = new_engine(decoder)
    generation = generate(engine, ids[:90], GenerationOptions(max_new_tokens=20))
    for _ in range(consumed):
        next(generation)
    generation.close()
    assert list(generation) == []
    assert generation.result.finish_reason == "cancelled" and len(generation.result.token_ids) == consumed
    other = ids[30:100]
    fresh = run(new_engine(decoder), other, GenerationOptions(max_new_tokens=10))
    assert run(engine, other, GenerationOptions(max_new_tokens=10)).token_ids == fresh.token_ids


def test_a_finished_generation_stays_finished_when_closed(decoder: Decoder, ids: list[int]) -> None:
    generation = generate(new_engine(decoder), ids[:9], GenerationOptions(max_new_tokens=2))
    list(generation)
    generation.close()
    assert generation.result.finish_reason == "length"


@pytest.mark.parametrize(
    ("during_pass", "tokens", "cached"), [(0, 0, 0), (1, 0, 64), (2, 0, 192), (3, 1, 300), (5, 3, 302)]
)
def test_cancelling_between_passes(
    decoder: Decoder, ids: list[int], during_pass: int, tokens: int, cached: int
) -> None:
    """300 tokens are three passes of prefill: a cancellation does not wait for all of them."""
    engine = new_engine(decoder)
    event = threading.Event()
    passes = 0

    def count(name: str) -> None:
        nonlocal passes
        passes += name.startswith("embedding")
        if passes == during_pass:
            event.set()

    count("")
    session_of(engine).before_launch = count
    generation = generate(engine, ids[:300], GenerationOptions(max_new_tokens=20), cancelled=event.is_set)
    assert len(list(generation)) == tokens
    assert (generation.result.finish_reason, len(generation.result.token_ids)) == ("cancelled", tokens)
    assert (passes, engine.cache.length) == (during_pass, cached)
    fresh = run(new_engine(decoder), ids[:250], GenerationOptions(max_new_tokens=10))
    assert run(engine, ids[:250], GenerationOptions(max_new_tokens=10)).token_ids == fresh.token_ids


@settings(max_examples=25, deadline=None)
@given(launches=st.integers(0, 60))
def test_an_interrupt_anywhere(decoder: Decoder, ids: list[int], launches: int) -> None:
    engine = new_engine(decoder)
    left = launches

    def interrupt(name: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt

    session_of(engine).before_launch = interrupt
    generation = generate(engine, ids[:200], GenerationOptions(max_new_tokens=12))
    with pytest.raises(KeyboardInterrupt):
        list(generation)
    assert generation.result.finish_reason == "cancelled"
    session_of(engine).before_launch = lambda name: None
    result = run(engine, ids[:210], GenerationOptions(max_new_tokens=5))
    assert_greedy(decoder, ids[:210], result.token_ids)


def test_two_generations_take_turns(decoder: Decoder, ids: list[int]) -> None:
    """Slow, but right: each finds out what the other left in the cache."""
    engine, options = new_engine(decoder), GenerationOptions(max_new_tokens=6)
    one, two = generate(engine, ids[:20], options), generate(engine, ids[10:40], options)
    for pair in zip(one, two, strict=True):
        assert pair[0].index == pair[1].index
    assert_greedy(decoder, ids[:20], one.result.token_ids)
    assert_greedy(decoder, ids[10:40], two.result.token_ids)


def test_a_token_costs_no_comparison_of_those_before_it(
    decoder: Decoder, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 8192 tokens, comparing all of them for each new one would cost more than launching the nets."""
    compared: list[int] = []
    original = KvCache.common_prefix

    def counting(cache: KvCache, asked: Sequence[int], known: int = 0) -> int:
        compared.append(max(0, min(len(asked), cache.length) - known))
        return original(cache, asked, known)

    monkeypatch.setattr(KvCache, "common_prefix", counting)
    engine = new_engine(decoder)
    run(engine, ids[:200], GenerationOptions(max_new_tokens=9))
    assert compared == [0] * 9
    run(engine, ids[:200], GenerationOptions(max_new_tokens=2))  # a new sequence is compared once
    assert compared[9:] == [200, 0]


@pytest.mark.parametrize("touch", ["other tokens", "fewer tokens", "as many other tokens"])
def test_a_cache_that_somebody_else_used_is_compared_again(decoder: Decoder, ids: list[int], touch: str) -> None:
    engine, other = new_engine(decoder), [*ids[:10], *((token + 1) % 101 for token in ids[10:60])]
    alone = run(engine, ids[:50], GenerationOptions(max_new_tokens=6))
    generation = generate(new := new_engine(decoder), ids[:50], GenerationOptions(max_new_tokens=6))
    for count, _ in enumerate(generation, start=1):
        if touch == "fewer tokens":
            new.cache.rollback(count)
        else:
            length = 20 if touch == "other tokens" else new.cache.length
            new.forward(other[new.reuse(other[:length]) : length])
            assert new.cache.length == length
    assert generation.result.token_ids == alone.token_ids


def test_sampling_is_repeatable_whatever_the_cache_holds(decoder: Decoder, ids: list[int]) -> None:
    sampling = SamplingOptions(temperature=0.9, top_p=0.9, repetition_penalty=1.1, seed=42)
    options = GenerationOptions(max_new_tokens=25, sampling=sampling)
    engine = new_engine(decoder)
    first = run(engine, ids[:50], options)
    assert run(engine, ids[:50], options).token_ids == first.token_ids
    assert run(new_engine(decoder, 0), ids[:50], options).token_ids == first.token_ids
    other = GenerationOptions(max_new_tokens=25, sampling=SamplingOptions(temperature=0.9, seed=43))
    assert run(engine, ids[:50], other).token_ids != first.token_ids


def test_the_repetition_penalty_sees_prompt_and_answer(decoder: Decoder, ids: list[int]) -> None:
    options = GenerationOptions(max_new_tokens=30, sampling=SamplingOptions(repetition_penalty=100.0))
    result = run(new_engine(decoder), ids[:10], options)
    assert len({*ids[:10], *result.token_ids}) == len(set(ids[:10])) + 30


def test_penalties_see_the_answer_alone(decoder: Decoder, ids: list[int]) -> None:
    sampling = SamplingOptions(presence_penalty=2.0, frequency_penalty=2.0)
    result = run(new_engine(decoder), ids[:10], GenerationOptions(max_new_tokens=30, sampling=sampling))
    answer: list[int] = []
    for _ in range(30):
        logits = reference_logits(decoder, [*ids[:10], *answer])[-1].astype(np.float64)
        for token in set(answer):
            logits[token] -= 2 + 2 * answer.count(token)
        answer.append(int(np.argmax(logits)))
    assert list(result.token_ids) == answer
    assert len(set(answer)) < 30 or set(answer) & set(ids[:10])


def test_logprobs(decoder: Decoder, ids: list[int]) -> None:
    generation = generate(new_engine(decoder), ids[:30], GenerationOptions(max_new_tokens=8, logprobs=5))
    said: list[int] = []
    for event in generation:
        logits = torch.from_numpy(reference_logits(decoder, [*ids[:30], *said])[-1])
        values, tokens = torch.log_softmax(logits, dim=0).topk(5)
        assert event.logprobs is not None
        assert [token for token, _ in event.logprobs.top] == tokens.tolist()
        assert [value for _, value in event.logprobs.top] == pytest.approx(values.tolist(), abs=1e-3)
        assert event.logprobs.top[0] == (event.token_id, event.logprobs.chosen)
        said.append(event.token_id)
    plain = generate(new_engine(decoder), ids[:30], GenerationOptions(max_new_tokens=1))
    assert [event.logprobs for event in plain] == [None]


@pytest.mark.parametrize("count", [-1, 21, 1.0, True])
def test_logprobs_out_of_range(count: int) -> None:
    with pytest.raises(UsageError, match="logprobs must be a whole number from 0 to 20"):
        GenerationOptions(logprobs=count)


def test_a_bias_for_a_token_that_there_is_not(decoder: Decoder, ids: list[int]) -> None:
    options = GenerationOptions(sampling=SamplingOptions(logit_bias={100: 1, 101: 1}))
    with pytest.raises(UsageError, match="names token 101, but this model's ids end with 100"):
        generate(new_engine(decoder), ids[:3], options)


def test_a_nan_does_not_outlive_its_generation(decoder: Decoder, ids: list[int]) -> None:
    engine = new_engine(decoder, 0)
    run(engine, ids[:40], GenerationOptions(max_new_tokens=1))
    values = engine.cache.views(1, 0, 1)[1].buffer
    assert isinstance(values, TorchBuffer)
    values.fill(float("nan"), DType.F32)
    with pytest.raises(BackendError, match="nan"):
        run(engine, ids[:60], GenerationOptions(max_new_tokens=1))
    result = run(engine, ids[20:60], GenerationOptions(max_new_tokens=5))
    assert result.reused_tokens == 0
    assert_greedy(decoder, ids[20:60], result.token_ids)


def test_the_runtime_imports_nothing_heavy() -> None:
    """A SoC board has no torch; see the house rules."""
    import subprocess
    import sys

    core = Path(__file__).parents[1] / "core"
    code = (
        f"import sys; sys.path.insert(0, {str(core)!r})\n"
        "import tpudeploy.runtime.conversation, tpudeploy.runtime.bundle_store\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'typer', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
