"""Bmodels in the layouts of others: every layout answers as the decoder itself does, whatever happens to its cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foreign_nets import LENGTH, LLM_CONVERT, SOPHON_CHATGLM4, TINY, VENDORS, NumpySession, Vendor
from tpudeploy.contracts.dtypes import DType, to_storage
from tpudeploy.errors import BundleError, SequenceTooLongError, UsageError
from tpudeploy.runtime.foreign.detect import detect_layout
from tpudeploy.runtime.foreign.engine import ForeignEngine
from tpudeploy.runtime.foreign.layout import HiddenMark
from tpudeploy.runtime.generator import GenerationOptions, GenerationResult, generate
from tpudeploy.runtime.sampling import SamplingOptions
from tpudeploy.testing.tiny_decoder import TinyDecoder

PROMPT = [7, 200, 31, 8, 90, 14]
OTHER = [7, 200, 31, 9, 9, 120, 61]


@pytest.fixture(params=VENDORS, ids=lambda vendor: vendor.name)
def vendor(request: pytest.FixtureRequest) -> Vendor:
    found: Vendor = request.param
    return found


@pytest.fixture
def engine(vendor: Vendor) -> Iterator[ForeignEngine]:
    with open_engine(vendor) as engine:
        yield engine


def decoder_of(vendor: Vendor) -> TinyDecoder:
    return TinyDecoder(TINY.model_copy(update={"num_layers": vendor.layers}), seed=5)


def open_engine(vendor: Vendor, mark: HiddenMark | None = None) -> ForeignEngine:
    session = NumpySession(vendor, decoder_of(vendor))
    return ForeignEngine(session, detect_layout(session.loaded, "model.bmodel"), mark)


def greedy(decoder: TinyDecoder, prompt: Sequence[int], count: int) -> list[int]:
    """The plainest reference there is: the whole sequence anew for each token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(np.argmax(decoder.run(np.array([ids]))[0, -1])))
    return ids[len(prompt) :]


def answer(engine: ForeignEngine, prompt: Sequence[int], count: int | None = None) -> GenerationResult:
    generation = generate(engine, prompt, GenerationOptions(max_new_tokens=count))
    for _ in generation:
        pass
    return generation.result


def launches(engine: ForeignEngine) -> list[str]:
    assert isinstance(engine.session, NumpySession)
    return engine.session.launches


def test_answers_like_the_decoder(vendor: Vendor, engine: ForeignEngine) -> None:
    assert engine.mark is vendor.mark or vendor.dynamic
    assert list(answer(engine, PROMPT, 8).token_ids) == greedy(decoder_of(vendor), PROMPT, 8)


def test_goes_on_to_the_very_end_of_the_cache(vendor: Vendor, engine: ForeignEngine) -> None:
    result = answer(engine, PROMPT)
    assert (result.finish_reason, len(result.token_ids)) == ("length", LENGTH - len(PROMPT) + 1)
    assert list(result.token_ids) == greedy(decoder_of(vendor), PROMPT, len(result.token_ids))


@pytest.mark.parametrize("length", [1, 2, LENGTH - 1, LENGTH])
def test_prompts_of_every_length(vendor: Vendor, engine: ForeignEngine, length: int) -> None:
    prompt = [(17 * place + 3) % TINY.vocab_size for place in range(length)]
    assert list(answer(engine, prompt, 1).token_ids) == greedy(decoder_of(vendor), prompt, 1)


def test_later_turns_and_other_prompts(vendor: Vendor, engine: ForeignEngine) -> None:
    decoder = decoder_of(vendor)
    first = answer(engine, PROMPT, 3)
    turn = [*PROMPT, *first.token_ids, 99]
    second = answer(engine, turn, 3)
    assert second.reused_tokens in (0, len(turn) - 2), "what the cache holds is kept, or computed anew at less cost"
    assert list(second.token_ids) == greedy(decoder, turn, 3)
    for prompt in (OTHER, PROMPT, turn, PROMPT[:2]):
        assert list(answer(engine, prompt, 4).token_ids) == greedy(decoder, prompt, 4)


def test_many_short_answers_leave_no_slot_behind(vendor: Vendor, engine: ForeignEngine) -> None:
    # A cache that slides loses a slot with each token; whoever counts slots wrongly runs out of them here.
    decoder = decoder_of(vendor)
    for last in range(LENGTH + 4):
        prompt = [*PROMPT, last]
        assert list(answer(engine, prompt, 2).token_ids) == greedy(decoder, prompt, 2)


def test_forgetting(vendor: Vendor, engine: ForeignEngine) -> None:
    before = answer(engine, PROMPT, 2)
    engine.forget()
    after = answer(engine, PROMPT, 2)
    assert (before.token_ids, after.reused_tokens) == (after.token_ids, 0)


def test_rows_of_logits(vendor: Vendor, engine: ForeignEngine) -> None:
    if vendor.top1:
        with pytest.raises(UsageError, match="gives no logits"):
            engine.forward(PROMPT, rows=1)
        return
    expected = decoder_of(vendor).run(np.array([PROMPT]))[0]
    assert np.abs(engine.forward(PROMPT, rows=4) - expected[-4:]).max() < 1e-3
    turn = [*PROMPT[:4], 1, 2]
    again = decoder_of(vendor).run(np.array([turn]))[0]
    assert np.abs(engine.forward(turn[engine.reuse(turn) :], rows=2) - again[-2:]).max() < 1e-3


@pytest.mark.parametrize("io", [DType.F16, DType.BF16])
def test_sixteen_bits(io: DType) -> None:
    vendor = replace(SOPHON_CHATGLM4, io=io)
    with open_engine(vendor) as engine:
        assert engine.mark is HiddenMark.NEGATIVE
        assert list(answer(engine, PROMPT, 1).token_ids) == greedy(decoder_of(vendor), PROMPT, 1)


def test_a_choice_by_the_nets_cannot_be_drawn() -> None:
    with open_engine(LLM_CONVERT) as engine:
        for options in (SamplingOptions(temperature=1.0), SamplingOptions(repetition_penalty=1.2)):
            with pytest.raises(UsageError, match="give no logits") as raised:
                generate(engine, PROMPT, GenerationOptions(sampling=options))
            assert "--temperature" in raised.value.hint
        for options in (SamplingOptions(presence_penalty=1), SamplingOptions(logit_bias={1: 1})):
            with pytest.raises(UsageError, match="give no logits"):
                generate(engine, PROMPT, GenerationOptions(sampling=options))
        with pytest.raises(UsageError, match="no log-probabilities"):
            generate(engine, PROMPT, GenerationOptions(logprobs=0))


def test_short_continuations_go_step_by_step_and_long_ones_anew() -> None:
    with open_engine(replace(LLM_CONVERT, top1=False)) as engine:
        answer(engine, PROMPT, 1)
        before = len(launches(engine))
        assert engine.reuse([*PROMPT, 5]) == len(PROMPT)
        assert engine.reuse([*PROMPT, 5, 6, 7]) == 0, "one padded pass costs less than three steps"
        assert len(launches(engine)) == before


def test_several_tokens_over_the_cache_take_few_passes() -> None:
    vendor = next(vendor for vendor in VENDORS if vendor.name == "block_kv, two caches")
    with open_engine(vendor) as engine:
        engine.forward(PROMPT)
        launches(engine).clear()
        engine.forward(OTHER)
        assert [name for name in launches(engine) if name.endswith("_0")] == ["block_kv_0", "block_cache_0"]


def test_the_wrong_mark_is_felt() -> None:
    with open_engine(SOPHON_CHATGLM4, HiddenMark.ONE) as engine:
        assert list(answer(engine, PROMPT, 6).token_ids) != greedy(decoder_of(SOPHON_CHATGLM4), PROMPT, 6)


def test_nets_that_hide_nothing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    block = TinyDecoder.block
    monkeypatch.setattr(
        TinyDecoder,
        "block",
        lambda self, layer, states, positions, mask, history: block(self, layer, states, positions, 0 * mask, history),
    )
    with pytest.raises(BundleError, match="hides a position neither") as raised:
        open_engine(SOPHON_CHATGLM4)
    assert "--mask" in raised.value.hint


@pytest.mark.parametrize("io", [DType.F32, DType.BF16])
def test_an_embedding_in_a_file_of_its_own(tmp_path: Path, io: DType) -> None:
    vendor = replace(SOPHON_CHATGLM4, io=io)
    session = NumpySession(vendor, decoder_of(vendor))
    nets = tuple(net for net in session.loaded.nets if not net.name.startswith("embedding"))
    session.loaded = session.loaded.model_copy(update={"nets": nets})
    layout = detect_layout(session.loaded, "model.bmodel", has_table=True)
    table = tmp_path / "embedding.bin"
    rows = session.decoder.weights["embedding"]["embedding.weight"]
    to_storage(rows, io).tofile(table)
    with ForeignEngine(session, layout, table=table) as engine:
        assert list(answer(engine, PROMPT, 2).token_ids) == greedy(decoder_of(vendor), PROMPT, 2)
    table.write_bytes(table.read_bytes()[: rows.shape[1] * io.itemsize_bytes])
    with ForeignEngine(session, layout, table=table) as engine, pytest.raises(UsageError, match=r"has no more rows"):
        engine.forward([1])
    for content in (b"", b"123456"):
        table.write_bytes(content)
        with pytest.raises(BundleError, match="the embedding"):
            ForeignEngine(session, layout, table=table)


def test_wrong_requests() -> None:
    with open_engine(SOPHON_CHATGLM4) as engine:
        for ids in ([], [-1], [TINY.vocab_size]):
            with pytest.raises(UsageError):
                engine.forward(ids)
        with pytest.raises(SequenceTooLongError, match="more than the 24"):
            engine.forward([1] * (LENGTH + 1))
