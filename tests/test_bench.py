"""The benchmark: what is measured, how it is summed up, and how it is shown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.torch_session import open_session, random_decoder, tiny_config

from byte_chat import ByteTemplate, ByteTokenizer
from tpudeploy.bench import (
    BenchReport,
    CaseChoice,
    Variant,
    make_cases,
    make_report,
    make_variants,
    measure,
    room_needed,
)
from tpudeploy.bench.cases import synthetic_ids
from tpudeploy.bench.report import published_for, spread
from tpudeploy.bench.tables import COLUMNS, to_csv, to_markdown, warning
from tpudeploy.contracts.backend import Availability, Backend, DeviceInfo, Session
from tpudeploy.contracts.bundle import BundleFormat
from tpudeploy.contracts.loadable import Loadable
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.errors import BackendError, SequenceTooLongError, UnknownNameError, UsageError
from tpudeploy.launch import LoadedModel, TextTools
from tpudeploy.launch.loaded import Identity
from tpudeploy.plugins import registry
from tpudeploy.runtime.engine import Engine

torch.set_num_threads(1)
SEQ = 96
QUESTION = CaseChoice(question="ab", max_new_tokens=8)


class Chips(Backend):
    """Says what chips there are, and runs nothing."""

    name, summary, formats = "chips", "", frozenset({BundleFormat.BMODEL})

    def __init__(self, *devices: DeviceInfo, fails: bool = False) -> None:
        self._devices, self._fails = devices, fails

    def availability(self) -> Availability:
        return Availability(available=True)

    def devices(self) -> Sequence[DeviceInfo]:
        if self._fails:
            raise BackendError("the driver is gone.")
        return self._devices

    def load(self, folder: Path, nets: Loadable, *, devices: Sequence[int] = (0,)) -> Session:
        raise AssertionError("nothing is loaded here")


CHIP = DeviceInfo(id=2, name="BM1684X", platform="SoC", temperature_celsius=51)
SIMULATED = DeviceInfo(id=2, name="BM1684X (simulated)")


def model(
    *devices: DeviceInfo, text: bool = True, quant: str = "int8", fails: bool = False, verify: bool = False
) -> LoadedModel:
    """A tiny model that really computes, called ChatGLM3-6B."""
    decoder = random_decoder(tiny_config().model_copy(update={"vocab_size": 300}))
    stages = (Stage(new_tokens=8, cache_length=SEQ),) if verify else ()
    engine = Engine(open_session(decoder, NetPlan(seq_length=SEQ, verify=stages)))
    tokenizer = ByteTokenizer()
    tools = TextTools(tokenizer, ByteTemplate()) if text else None
    identity = Identity("chatglm3:6b", quant, Path("/bundles/x"), frozenset())
    backend = Chips(*(devices or (DeviceInfo(id=7, name="another"), CHIP)), fails=fails)
    return LoadedModel(identity, backend, engine, tools, devices=(2,), load_s=1.5)


def report(
    loaded: LoadedModel, choice: CaseChoice = QUESTION, variants: Sequence[Variant] = (Variant(),), runs: int = 3
) -> BenchReport:
    finished = list(measure(loaded, make_cases(choice, loaded), variants, runs=runs, warmup=0))
    return make_report(loaded, finished, registry().models, platform="", warmup=0, runs=runs, interrupted=False)


def test_lengths_are_exact() -> None:
    choice = CaseChoice(question="ab", prompt_lengths=(1, 40, SEQ), context_lengths=(1, 33, SEQ), max_new_tokens=8)
    loaded = model()
    for case in make_cases(choice, loaded):
        (run,) = measure(loaded, [case], [Variant()], runs=1, warmup=0)
        assert run.result.reused_tokens == 0
        if case.kind.value == "prompt":
            assert run.result.prompt_tokens == case.length
        if case.kind.value == "context":
            # What the last token of the answer was computed over, itself among it.
            assert loaded.engine.cache.length == case.length  # type: ignore[attr-defined]
    names = [case.name for case in make_cases(choice, loaded)]
    assert names == ["question", "prompt 1", "prompt 40", f"prompt {SEQ}", "context 1", "context 33", f"context {SEQ}"]


def test_every_run_starts_from_an_empty_cache() -> None:
    loaded = model()
    cases = make_cases(CaseChoice(question="ab", prompt_lengths=(40,)), loaded)
    finished = list(measure(loaded, cases, [Variant("a"), Variant("b")], runs=2, warmup=1))
    assert [(run.case.name, run.variant.name) for run in finished] == [
        *[("question", "a"), ("question", "b")] * 2,
        *[("prompt 40", "a"), ("prompt 40", "b")] * 2,
    ]
    assert {run.result.reused_tokens for run in finished} == {0}


def test_synthetic_prompts_do_not_repeat_and_stay_the_same() -> None:
    ids = synthetic_ids(512, 65024)
    assert ids == synthetic_ids(512, 65024)
    assert len(ids) == 512 and 0 <= min(ids) <= max(ids) < 65024
    assert len(set(pairwise(ids))) > 500


def test_room_is_asked_for_what_cannot_be_shortened() -> None:
    text = TextTools(ByteTokenizer(), ByteTemplate())
    question = len(text.prompt_ids("ab"))
    assert room_needed(CaseChoice(question="ab", max_new_tokens=20), text) == (question, 20)
    # A prompt of 512 tokens is measured on a model for 512, as the published figures were.
    assert room_needed(CaseChoice(question="", prompt_lengths=(16, 512)), text) == (512, 1)
    assert sum(room_needed(CaseChoice(question="", context_lengths=(512,)), text)) == 513
    assert room_needed(CaseChoice(question="ab", prompt_lengths=(16,)), None) == (16, 1)


def test_what_cannot_be_measured() -> None:
    with pytest.raises(UsageError, match="from 1 on"):
        CaseChoice(prompt_lengths=(0,))
    with pytest.raises(UsageError, match="nothing to measure"):
        CaseChoice(question="")
    for choice in (CaseChoice(prompt_lengths=(SEQ + 1,)), CaseChoice(context_lengths=(SEQ + 1,))):
        with pytest.raises(SequenceTooLongError, match=f"of {SEQ + 1} tokens is more than the {SEQ}"):
            make_cases(choice, model())
    with pytest.raises(UsageError, match="no tokenizer"):
        make_cases(QUESTION, model(text=False))
    (case,) = make_cases(CaseChoice(question="ab", prompt_lengths=(5,)), model(text=False))
    assert case.name == "prompt 5"


def test_medians_and_ranges() -> None:
    told = spread([4.0, 1.0, 3.0, 2.0, 100.0])
    assert (told.median, told.minimum, told.maximum) == (3.0, 1.0, 100.0)
    assert (told.first_quartile, told.third_quartile) == (2.0, 4.0)
    assert told.values == (4.0, 1.0, 3.0, 2.0, 100.0)
    one = spread([2.5])
    assert one.median == one.minimum == one.maximum == one.first_quartile == one.third_quartile == 2.5


def test_the_rows_are_the_runs() -> None:
    told = report(model(), CaseChoice(question="ab", prompt_lengths=(SEQ,), max_new_tokens=8, ignore_eos=True))
    question, longest = told.rows
    assert question.new_tokens == (8, 8, 8) and len(question.first_token_s.values) == 3
    assert question.tokens_per_s is not None and question.tokens_per_s.minimum > 0
    assert 0 < question.first_token_s.minimum <= question.first_token_s.median <= question.first_token_s.maximum
    assert longest.new_tokens == (1, 1, 1)
    assert longest.tokens_per_s is None  # there is room for one token
    assert told.load_s == 1.5 and told.buffers_bytes > 0
    assert json.loads(told.model_dump_json())["rows"][0]["test"] == "question"


def test_a_chip_and_what_is_none() -> None:
    told = report(model())
    assert (told.hardware, told.platform, told.devices) == (True, "BM1684X SoC", (CHIP,))
    assert warning(told) == "" and "NOT A CHIP" not in to_markdown(told)
    told = report(model(SIMULATED))
    assert (told.hardware, told.platform) == (False, "BM1684X (simulated)")
    assert "say nothing about a BM1684X" in warning(told) and warning(told) in to_markdown(told)
    told = report(model(fails=True))
    assert (told.hardware, told.platform, told.devices) == (False, "chips", ())


def test_published_figures_stand_beside() -> None:
    told = report(model())
    (old,) = told.published
    assert (old.platform, old.first_token_s, old.tokens_per_s) == ("SE7-32", 1.116, 8.184)
    assert report(model(quant="bf16")).published == ()
    adapters = registry().models
    assert [old.tokens_per_s for old in published_for("glm4:9b-chat", "int4", "x", adapters)] == [7.489]
    assert [old.tokens_per_s for old in published_for("glm4:9b-chat-hf", "int8", "x", adapters)] == [4.471]
    assert [old.tokens_per_s for old in published_for("chatglm3:6b", "f16", "x", adapters)] == [4.067]
    # A bmodel of others tells its mode by its name only.
    of_file = published_for("chatglm3:6b", "bmodel", "chatglm3-6b_INT4_1dev.bmodel", adapters)
    assert [old.tokens_per_s for old in of_file] == [12.822]
    for name, quant in (("chatglm3:demo", "int8"), ("glm4:9b-chat-1m", "int8"), ("unheard:of", "int8")):
        assert published_for(name, quant, "x", adapters) == ()


def test_the_markdown_table_is_the_published_one() -> None:
    loaded = model()
    lines = to_markdown(report(loaded)).splitlines()
    assert lines[0] == "| platform | test program | model | first token latency(s) | token per second(tokens/s) |"
    assert lines[1] == "| --- | --- | --- | --- | --- |"
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[0] == "BM1684X SoC" and cells[1].startswith("tpudeploy ") and cells[2] == "chatglm3:6b int8, question"
    assert all(len(cell.partition(".")[2]) == 3 for cell in cells[3:])
    assert lines[3] == "| SE7-32 | chatglm3.py | chatglm3-6b_int8.bmodel (published) | 1.116 | 8.184 |"
    assert "Median of 3 runs each" in lines[5]
    assert len(cells) == len(COLUMNS)


def test_variants_are_named_where_there_are_several() -> None:
    told = report(model(), variants=(Variant(), Variant("warm")), runs=2)
    assert [row.variant for row in told.rows] == ["none", "warm"]
    text = to_markdown(told)
    assert "question, no drafts |" in text and "question, warm drafts |" in text


def test_drafts_on_and_off() -> None:
    """A prompt that says the same again and again: lookup finds what comes, and the answers are the same."""
    loaded = model(verify=True)
    variants = make_variants((), loaded, registry())
    assert [variant.name for variant in variants] == ["none", "prompt-lookup"]
    choice = CaseChoice(question="abcabcabcabcabcabc", max_new_tokens=60, ignore_eos=True)
    finished = list(measure(loaded, make_cases(choice, loaded), variants, runs=2, warmup=0))
    assert len({run.result.token_ids for run in finished}) == 1
    told = make_report(loaded, finished, {}, platform="", warmup=0, runs=2, interrupted=False)
    without, with_drafts = told.rows
    assert (without.drafted_tokens, without.tokens_per_pass) == (0, spread([1.0, 1.0]))
    assert 0 < with_drafts.accepted_tokens <= with_drafts.drafted_tokens
    assert with_drafts.tokens_per_pass is not None and with_drafts.tokens_per_pass.median > 1


def test_without_nets_that_verify_there_is_one_variant() -> None:
    for names in ((), ("prompt-lookup",), ("none",)):
        assert [variant.name for variant in make_variants(names, model(), registry())] == ["none"]
    assert [variant.name for variant in make_variants(("none",), model(verify=True), registry())] == ["none"]
    with pytest.raises(UnknownNameError, match="drafter"):
        make_variants(("nobody",), model(), registry())


def test_csv_has_a_line_a_row() -> None:
    told = report(model(), CaseChoice(question="ab", prompt_lengths=(5, SEQ), max_new_tokens=8), runs=2)
    rows = list(csv.DictReader(io.StringIO(to_csv(told))))
    assert [(row["source"], row["test"]) for row in rows] == [
        ("measured", "question"),
        ("measured", "prompt 5"),
        ("measured", f"prompt {SEQ}"),
        ("published", "question"),
    ]
    first = rows[0]
    assert float(first["first_token_s_min"]) <= float(first["first_token_s"]) <= float(first["first_token_s_max"])
    assert float(first["first_token_s"]) == pytest.approx(told.rows[0].first_token_s.median, rel=1e-5)
    assert (first["hardware"], first["runs"], first["quant"]) == ("True", "2", "int8")
    assert rows[2]["tokens_per_s"] == ""
    assert (rows[3]["platform"], rows[3]["tokens_per_s"]) == ("SE7-32", "8.184")


def test_a_cancellation_keeps_whole_runs_only() -> None:
    loaded = model()
    begun: list[int] = []
    finished = []
    cases = make_cases(QUESTION, loaded)
    stream = measure(
        loaded,
        cases,
        [Variant()],
        runs=5,
        warmup=1,
        cancelled=lambda: len(begun) > 3,
        announce=lambda case, variant, number: begun.append(number),
    )
    finished = list(stream)
    assert begun == [0, 1, 2, 3]  # the warm-up is run 0; the last one was cancelled at its first pass
    assert len(finished) == 2
    told = make_report(loaded, finished, {}, platform="desk", warmup=1, runs=5, interrupted=True)
    assert told.interrupted and told.platform == "desk" and len(told.rows[0].new_tokens) == 2
