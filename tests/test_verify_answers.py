"""Answers of the whole model: what is asked of a target, and how the reference judges it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from test_graph import source_of
from tiny import write_checkpoint
from torch_session import open_session, random_decoder, tiny_config
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.errors import SequenceTooLongError
from tpudeploy.graph import reference as graph_reference
from tpudeploy.graph.reference import StreamedReference, greedy, load_decoder
from tpudeploy.runtime.engine import Engine
from tpudeploy.verify import Prompt, Verdict
from tpudeploy.verify import reference as verify_reference
from tpudeploy.verify.answers import GreedyAnswer, answer_greedily, judge, needed_rows
from tpudeploy.verify.limits import LIMITS, Limits
from tpudeploy.verify.reference import reference_logits

torch.set_num_threads(1)

PLAN = NetPlan(seq_length=32, prefill=(Stage(new_tokens=8, cache_length=32),), verify=())
LOOSE = Limits(net_cosine=0.9, logits_cosine=0.9, regret=0.5)
PROMPT = Prompt(name="p", ids=tuple(range(5, 16)))
REFERENCE = np.array([[0, 1, 5, 2], [4, 0, 0, 3], [0, 9, 1, 1]], dtype=np.float32)


def answer(ids: tuple[int, ...], logits: Array = REFERENCE) -> GreedyAnswer:
    return GreedyAnswer(PROMPT, ids, logits)


class TestAsking:
    @pytest.fixture
    def engine(self) -> Engine:
        return Engine(open_session(random_decoder(tiny_config()), PLAN))

    def test_is_the_greedy_continuation(self, engine: Engine) -> None:
        expected = greedy(random_decoder(tiny_config()), list(PROMPT.ids), 6)
        got = answer_greedily(engine, PROMPT, max_new_tokens=6, stop_ids=())
        assert list(got.ids) == expected
        assert got.logits.argmax(axis=1).tolist() == expected
        assert got.context == (*PROMPT.ids, *expected[:-1])

    def test_begins_anew_each_time(self, engine: Engine) -> None:
        first = answer_greedily(engine, PROMPT, max_new_tokens=6, stop_ids=())
        answer_greedily(engine, Prompt(name="other", ids=(1, 2, 3)), max_new_tokens=6, stop_ids=())
        assert np.array_equal(answer_greedily(engine, PROMPT, max_new_tokens=6, stop_ids=()).logits, first.logits)

    def test_ends_at_a_stop_token(self, engine: Engine) -> None:
        whole = answer_greedily(engine, PROMPT, max_new_tokens=6, stop_ids=())
        stop = whole.ids[2]
        got = answer_greedily(engine, PROMPT, max_new_tokens=6, stop_ids={stop})
        assert got.ids == whole.ids[: whole.ids.index(stop) + 1]

    def test_ends_where_the_cache_is_full(self, engine: Engine) -> None:
        full = Prompt(name="full", ids=tuple(range(30)))
        assert len(answer_greedily(engine, full, max_new_tokens=9, stop_ids=()).ids) == 3

    def test_too_long(self, engine: Engine) -> None:
        with pytest.raises(SequenceTooLongError):
            answer_greedily(engine, Prompt(name="long", ids=tuple(range(33))), max_new_tokens=1, stop_ids=())

    def test_ends_where_logits_are_no_numbers(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = iter([np.ones((1, 4), np.float32), np.full((1, 4), np.nan, np.float32)])
        monkeypatch.setattr(engine, "forward", lambda ids: next(rows))
        assert len(answer_greedily(engine, PROMPT, max_new_tokens=6, stop_ids=()).ids) == 2


class TestJudging:
    def test_agreement(self) -> None:
        row = judge(answer((2, 0, 1)), REFERENCE, LOOSE)
        assert (row.agreement, row.first_divergence, row.regret, row.verdict) == (1, None, 0, Verdict.OK)
        assert row.cosine == row.worst_cosine == pytest.approx(1)
        assert (row.prompt, row.prompt_tokens, row.answer_tokens) == ("p", 11, 3)

    def test_divergence(self) -> None:
        row = judge(answer((2, 3, 1)), REFERENCE, LOOSE)
        assert row.agreement == pytest.approx(2 / 3)
        assert row.first_divergence == 1
        assert row.regret == pytest.approx((4 - 3) / REFERENCE[1].std())
        assert row.verdict is Verdict.WORSE

    def test_a_near_tie_is_forgiven(self) -> None:
        reference = REFERENCE.copy()
        reference[1, 3] = 3.99
        row = judge(answer((2, 3, 1)), reference, LOOSE)
        assert (row.first_divergence, row.verdict) == (1, Verdict.OK)

    def test_logits_that_point_elsewhere(self) -> None:
        logits = REFERENCE.copy()
        logits[2] = [5, 9, -5, 1]
        row = judge(answer((2, 0, 1), logits), REFERENCE, LOOSE)
        assert row.agreement == 1
        assert row.cosine == pytest.approx(1)
        assert row.worst_cosine < 0.9
        assert row.verdict is Verdict.WORSE

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_logits_that_are_no_numbers(self, value: float) -> None:
        logits = REFERENCE.copy()
        logits[0, 0] = value
        row = judge(answer((2, 0, 1), logits), REFERENCE, LOOSE)
        assert (row.cosine, row.regret, row.verdict) == (0, None, Verdict.WORSE)

    def test_logits_that_are_all_alike(self) -> None:
        flat = np.zeros((1, 4), np.float32)
        assert judge(answer((0,), flat), flat, LOOSE).verdict is Verdict.OK

    def test_every_mode_has_limits_and_fewer_bits_have_looser_ones(self) -> None:
        assert set(LIMITS) == set(QuantMode)
        exact, half, byte, nibble = (LIMITS[QuantMode(name)] for name in ("none", "f16", "int8", "int4"))
        for stricter, looser in ((exact, half), (half, byte), (byte, nibble)):
            assert stricter.net_cosine >= looser.net_cosine > 0.9
            assert stricter.logits_cosine > looser.logits_cosine
            assert stricter.regret < looser.regret


class TestReference:
    def test_equals_the_whole_model(self, tmp_path: Path) -> None:
        weights = source_of(write_checkpoint(tmp_path)).weights()
        ids = (3, 1, 4, 1, 5, 9, 2, 6)
        whole = load_decoder(weights)(torch.tensor([ids]))[0].numpy()
        logits = reference_logits(weights, {ids: 3, ids[:2]: 1}, lambda name: None)
        assert logits[ids] == pytest.approx(whole[-3:], abs=1e-5)
        assert logits[ids[:2]] == pytest.approx(whole[1:2], abs=1e-5)
        assert logits[ids] == pytest.approx(StreamedReference(weights).logits(list(ids))[-3:].numpy(), abs=1e-5)

    def test_nothing_asked_nothing_read(self, tmp_path: Path) -> None:
        names: list[str] = []
        assert reference_logits(source_of(write_checkpoint(tmp_path)).weights(), {}, names.append) == {}
        assert names == []

    def test_one_layer_at_a_time_for_all_sequences(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        weights = source_of(write_checkpoint(tmp_path, num_layers=4)).weights()
        loaded: list[int] = []

        def load_block(given: object, layer: int) -> object:
            loaded.append(layer)
            return graph_reference.load_block(weights, layer)

        monkeypatch.setattr(verify_reference, "load_block", load_block)
        reference_logits(weights, {(1, 2): 1, (3, 4, 5): 2, (6,): 1}, lambda name: None)
        assert loaded == [0, 1, 2, 3]

    def test_equal_answers_are_computed_once(self) -> None:
        other = GreedyAnswer(Prompt(name="q", ids=(1, 2)), (2, 0), REFERENCE[:2])
        needed = needed_rows([answer((2, 0, 1)), answer((2, 0, 3)), other])
        assert needed == {(*PROMPT.ids, 2, 0): 3, (1, 2, 2): 2}
