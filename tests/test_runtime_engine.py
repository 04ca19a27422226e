"""The engine against the whole-sequence decoder: every stage, chunking, prefix and boundary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.shared_data import shared_json, shared_path
from tests.torch_session import (
    TorchBuffer,
    TorchSession,
    open_session,
    random_decoder,
    reference_logits,
    tiny_config,
)

from tpudeploy.contracts.backend import Buffer
from tpudeploy.contracts.dtypes import Array, DType
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.errors import BackendError, SequenceTooLongError, UsageError
from tpudeploy.graph.decoder import Decoder
from tpudeploy.runtime.engine import Engine
from tpudeploy.runtime.passes import AttentionMask

torch.set_num_threads(1)
SEQ = 320
TOLERANCE = 2e-4


def stages(*pairs: tuple[int, int]) -> tuple[Stage, ...]:
    return tuple(Stage(new_tokens=new, cache_length=cache) for new, cache in pairs)


PLANS = {
    "one": NetPlan(seq_length=SEQ, prefill=stages((16, SEQ)), verify=()),
    "whole": NetPlan(seq_length=SEQ, prefill=stages((SEQ, SEQ))),
    "many": NetPlan(
        seq_length=SEQ,
        prefill=stages((32, 0), (SEQ, 0), (16, 64), (16, SEQ), (64, SEQ), (2, 40)),
        decode_cache_lengths=(32, 96, SEQ),
        verify=stages((4, SEQ), (8, 64)),
    ),
    "single steps": NetPlan(seq_length=SEQ, prefill=stages((1, SEQ))),
    "odd": NetPlan(seq_length=SEQ, prefill=stages((7, SEQ), (13, 0)), verify=()),
}


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return random_decoder(tiny_config())


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return [int(token) for token in np.random.default_rng(3).integers(0, 101, SEQ)]


@pytest.fixture(scope="module")
def expected(decoder: Decoder, ids: list[int]) -> Array:
    """(seq, vocab): row n holds the logits after n + 1 tokens."""
    return reference_logits(decoder, ids)


@pytest.fixture(scope="module", params=list(PLANS))
def engine(request: pytest.FixtureRequest, decoder: Decoder) -> Engine:
    return Engine(open_session(decoder, PLANS[request.param]))


def compute(engine: Engine, ids: Sequence[int], *, rows: int = 1) -> Array:
    """Logits after ``ids``, whatever the cache holds."""
    return engine.forward(ids[engine.reuse(ids) :], rows=rows)


def cache_buffers(engine: Engine) -> list[TorchBuffer]:
    views = [view for layer in range(engine.nets.config.num_layers) for view in engine.cache.views(layer, 0, 1)]
    return [view.buffer for view in views if isinstance(view.buffer, TorchBuffer)]


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 130, 299, 300, SEQ])
def test_a_prompt_of_any_length_gives_the_decoders_logits(
    engine: Engine, ids: list[int], expected: Array, length: int
) -> None:
    engine.cache.truncate(0)
    logits = engine.forward(ids[:length])
    assert logits.shape == (1, 101) and logits.dtype == np.float32
    np.testing.assert_allclose(logits[0], expected[length - 1], atol=TOLERANCE)
    assert engine.cache.ids == tuple(ids[:length])


def test_every_length_from_1_to_300(decoder: Decoder, ids: list[int], expected: Array) -> None:
    engine = Engine(open_session(decoder, PLANS["many"]))
    for length in range(1, 301):
        engine.cache.truncate(0)
        np.testing.assert_allclose(engine.forward(ids[:length])[0], expected[length - 1], atol=TOLERANCE)


def test_decoding_token_by_token_to_the_very_end(engine: Engine, ids: list[int], expected: Array) -> None:
    engine.cache.truncate(0)
    engine.forward(ids[:10])
    for position in range(10, SEQ):
        logits = engine.forward([ids[position]])
        np.testing.assert_allclose(logits[0], expected[position], atol=TOLERANCE)
    with pytest.raises(SequenceTooLongError, match=r"321 .* 320"):
        engine.forward([0])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_split_reuse_and_rollback(decoder: Decoder, ids: list[int], expected: Array, data: st.DataObject) -> None:
    engine = engine_of_property_test(decoder)
    for _ in range(data.draw(st.integers(1, 5))):
        action = data.draw(st.sampled_from(["forward", "rollback", "reuse", "rows"]))
        held = engine.cache.length
        if action == "rollback":
            count = data.draw(st.integers(0, held + 3))
            engine.cache.rollback(count)
            assert engine.cache.length == max(0, held - count)
            continue
        if action == "reuse":
            length = data.draw(st.integers(1, SEQ))
            np.testing.assert_allclose(compute(engine, ids[:length])[0], expected[length - 1], atol=TOLERANCE)
            continue
        if held == SEQ:
            continue
        count = data.draw(st.integers(1, SEQ - held))
        rows = data.draw(st.integers(0, count)) if action == "rows" else 1
        logits = engine.forward(ids[held : held + count], rows=rows)
        np.testing.assert_allclose(logits, expected[held + count - rows : held + count], atol=TOLERANCE)
        assert logits.shape == (rows, 101)


_ENGINES: dict[int, Engine] = {}


def engine_of_property_test(decoder: Decoder) -> Engine:
    """One engine for all examples, each on an empty cache with the rows of those before in it."""
    engine = _ENGINES.setdefault(id(decoder), Engine(open_session(decoder, PLANS["many"])))
    engine.cache.truncate(0)
    return engine


@pytest.mark.parametrize("garbage", [1e4, -1e4, 300.0])
def test_unused_cache_rows_do_not_matter(decoder: Decoder, ids: list[int], garbage: float) -> None:
    for plan in PLANS.values():
        clean, dirty = Engine(open_session(decoder, plan)), Engine(open_session(decoder, plan))
        for length in (1, 5, 40, 41, 42, 100, 101):
            # Keys large enough reach over the mask's -10000 (see MASK_VALUE); real keys never are. Values are no issue.
            for index, buffer in enumerate(cache_buffers(dirty)):
                first_free = dirty.cache.length * dirty.cache.row_bytes(0, 0)
                buffer.fill(garbage if index % 2 else garbage / 100, DType.F32, from_byte=first_free)
            assert np.array_equal(compute(clean, ids[:length]), compute(dirty, ids[:length]))


def test_the_cache_gets_just_the_rows_of_the_new_tokens(decoder: Decoder, ids: list[int]) -> None:
    engine = Engine(open_session(decoder, PLANS["one"]))
    engine.forward(ids[:40])
    before = [buffer.data[: 40 * engine.cache.row_bytes(0, 0)].copy() for buffer in cache_buffers(engine)]
    engine.forward(ids[40:43])
    engine.forward(ids[43:44])
    for buffer, rows in zip(cache_buffers(engine), before, strict=True):
        assert np.array_equal(buffer.data[: rows.size], rows)


def blocks_of_layer_0(session: TorchSession) -> list[str]:
    kinds = {net.name: net for net in session.manifest.nets.nets if net.layer == 0}
    return [name for name in session.launched if name in kinds]


def test_the_smallest_fitting_stage_is_taken(decoder: Decoder, ids: list[int]) -> None:
    session = open_session(decoder, PLANS["many"])
    engine = Engine(session)
    cases = [
        (0, 30, ["block_0"]),
        (0, 1, ["block_cache_0"]),
        (0, 200, ["block_0_s320_c0"]),
        (33, 1, ["block_cache_0_c96"]),
        (97, 1, ["block_cache_0_c320"]),
        (40, 2, ["block_kv_0_s2_c40"]),
        (41, 2, ["block_verify_0"]),
        (64, 7, ["block_verify_0_s8_c64"]),
        (65, 7, ["block_kv_0_s16_c320"]),
        (10, 17, ["block_kv_0_s64_c320"]),
        (10, 16, ["block_kv_0"]),
        (100, 130, ["block_kv_0_s64_c320", "block_kv_0_s64_c320", "block_verify_0"]),
    ]
    for cached, count, names in cases:
        engine.cache.truncate(0)
        if cached:
            engine.forward(ids[:cached])
        session.launched.clear()
        engine.forward(ids[cached : cached + count])
        assert blocks_of_layer_0(session) == names


def test_only_logits_that_are_asked_for_are_computed(decoder: Decoder, ids: list[int]) -> None:
    session = open_session(decoder, PLANS["many"])
    engine = Engine(session)
    assert engine.forward(ids[:100], rows=0).shape == (0, 101)
    assert not any(name.startswith("lm_head") for name in session.launched)
    engine.forward(ids[100:150])
    assert session.launched.count("lm_head") == 1
    engine.forward(ids[150:154], rows=4)  # a verify pass, with an output layer of its size
    assert session.launched.count("lm_head_s4") == 1 and session.launched.count("lm_head") == 1


def test_some_rows_of_a_verify_pass(decoder: Decoder, ids: list[int], expected: Array) -> None:
    session = open_session(decoder, PLANS["many"])
    engine = Engine(session)
    engine.forward(ids[:150])
    for count, rows in ((4, 3), (3, 2), (4, 4), (3, 3)):
        held = engine.cache.length
        logits = engine.forward(ids[held : held + count], rows=rows)
        np.testing.assert_allclose(logits, expected[held + count - rows : held + count], atol=TOLERANCE)
        engine.cache.rollback(1)
    assert session.launched.count("lm_head_s4") == 4


def test_padding_is_always_the_same(decoder: Decoder, ids: list[int]) -> None:
    """So that a net whose scales depend on all of its rows gives the same answer to the same prompt."""
    session = open_session(decoder, PLANS["one"])
    written: list[Array] = []
    original = session.write_bytes

    def write_bytes(buffer: Buffer, data: Array, offset_bytes: int) -> None:
        if data.dtype == np.int32 and data.size == 16:
            written.append(data.copy())
        original(buffer, data, offset_bytes)

    session.write_bytes = write_bytes  # type: ignore[method-assign]
    engine = Engine(session)
    engine.forward(ids[:16])
    engine.forward(ids[16:19])
    assert written[2].tolist() == [*ids[16:19], *[0] * 13]
    assert written[3].tolist() == list(range(16, 32))


def test_nothing_is_allocated_after_construction(decoder: Decoder, ids: list[int]) -> None:
    session = open_session(decoder, PLANS["many"])
    engine = Engine(session)
    before = session.memory()
    engine.forward(ids[:200])
    for token in ids[200:210]:
        engine.forward([token])
    assert session.memory() == before


@pytest.mark.parametrize("net", ["embedding_s64", "block_kv_1_s64_c320", "block_kv_2_s64_c320", "lm_head"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, BackendError("no")])
def test_an_interrupt_leaves_the_engine_consistent(
    decoder: Decoder, ids: list[int], expected: Array, net: str, error: BaseException
) -> None:
    session = open_session(decoder, PLANS["many"])
    engine = Engine(session)
    engine.forward(ids[:70])

    def interrupt(name: str) -> None:
        if name == net and engine.cache.length >= 100:
            raise error

    session.before_launch = interrupt
    with pytest.raises((KeyboardInterrupt, BackendError)):
        engine.forward(ids[70:200])
    session.before_launch = lambda name: None
    assert engine.cache.ids == tuple(ids[: engine.cache.length])
    np.testing.assert_allclose(compute(engine, ids[:250])[0], expected[249], atol=TOLERANCE)


@pytest.mark.parametrize("moment", ["show", "written"])
def test_an_interrupt_while_the_mask_changes(
    decoder: Decoder, ids: list[int], expected: Array, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    engine = Engine(open_session(decoder, PLANS["one"]))
    engine.forward(ids[:20])
    original = getattr(AttentionMask, moment)

    def interrupted(mask: AttentionMask, cached: int) -> bool:
        if moment == "show":
            original(mask, cached)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AttentionMask, moment, interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.forward(ids[20:30])
    engine.cache.truncate(5)
    np.testing.assert_allclose(engine.forward(ids[5:9])[0], expected[8], atol=TOLERANCE)
    np.testing.assert_allclose(engine.forward(ids[9:25])[0], expected[24], atol=TOLERANCE)


@pytest.mark.parametrize("activation", [DType.F16, DType.BF16])
def test_sixteen_bit_activations(decoder: Decoder, ids: list[int], expected: Array, activation: DType) -> None:
    """Rounding is far below what a wrong mask, position or row would do."""
    scale = float(np.abs(expected).max())
    for name in ("one", "many"):
        engine = Engine(open_session(decoder, PLANS[name], activation))
        for length in (1, 20, 21, 22, 90):
            error = np.abs(compute(engine, ids[:length])[0] - expected[length - 1]).max()
            assert error < scale * (0.01 if activation is DType.F16 else 0.08)


@pytest.mark.parametrize("layers", [1, 2])
def test_an_odd_or_even_number_of_layers(layers: int) -> None:
    decoder = random_decoder(tiny_config(num_layers=layers, qkv_bias=False, num_kv_heads=1), seed=5)
    tokens = list(range(60))
    expected = reference_logits(decoder, tokens)
    engine = Engine(open_session(decoder, PLANS["one"]))
    np.testing.assert_allclose(engine.forward(tokens, rows=60), expected, atol=TOLERANCE)


@pytest.mark.parametrize("tokens", [[-1], [101], [5, 1000, 3]])
def test_ids_outside_of_the_vocabulary(engine: Engine, tokens: list[int]) -> None:
    engine.cache.truncate(0)
    with pytest.raises(UsageError, match="between 0 and 100"):
        engine.forward(tokens)
    with pytest.raises(UsageError):
        engine.forward([])
    with pytest.raises(UsageError):
        engine.forward([1], rows=2)
    assert engine.cache.length == 0


@pytest.fixture(scope="module")
def golden_decoder() -> Decoder:
    from tpudeploy.checkpoint.reader import Checkpoint
    from tpudeploy.checkpoint.weights import ModelWeights
    from tpudeploy.graph.reference import load_decoder
    from tpudeploy_chatglm3.adapter import ChatGLM3

    adapter, checkpoint = ChatGLM3(), Checkpoint(shared_path("golden", "tiny-chatglm3"))
    config = adapter.read_config(checkpoint.config)
    return load_decoder(ModelWeights(checkpoint, config, adapter.weight_table(config)))


@pytest.mark.parametrize("plan", [NetPlan(seq_length=512), NetPlan(seq_length=256, prefill=stages((16, 256), (64, 0)))])
def test_golden_logits_and_greedy_tokens(golden_decoder: Decoder, plan: NetPlan) -> None:
    """The original code's vectors: prompts one after the other over one engine, reuse and all."""
    golden = shared_json("golden", "tiny-chatglm3", "golden.json")
    arrays = np.load(shared_path("golden", "tiny-chatglm3", "golden.npz"))
    engine = Engine(open_session(golden_decoder, plan))
    for name, prompt in golden["prompts"].items():
        whole = f"{name}_logits" in arrays
        wanted = arrays[f"{name}_logits" if whole else f"{name}_logits_last4"]
        engine.cache.truncate(0)
        np.testing.assert_allclose(engine.forward(prompt, rows=len(wanted)), wanted, atol=2e-5)
        tokens: list[int] = []
        for _ in golden["greedy"][name]["new_tokens"]:
            tokens.append(int(compute(engine, prompt + tokens)[0].argmax()))
        assert tokens == golden["greedy"][name]["new_tokens"]
