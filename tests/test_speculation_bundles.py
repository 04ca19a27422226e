"""Speculation on real nets: answers are the same with and without drafts, and grounded ones take fewer passes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.drafting import Scripted

from cli_support import run_cli
from conftest import link_toolchain
from test_demo import build, dialogues, turns
from tiny import write_checkpoint
from tpudeploy.compile.build import build_bundle
from tpudeploy.compile.plan import BuildOptions, plan_build
from tpudeploy.compile.source import open_source, parse_model
from tpudeploy.compile.toolchain import Toolchain
from tpudeploy.contracts.bundle import BundleFormat
from tpudeploy.contracts.drafter import Drafter
from tpudeploy.contracts.net import NetKind, Split, Stage
from tpudeploy.contracts.net_plan import DEFAULT_VERIFY_TOKENS, NetPlan
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.plugins import registry
from tpudeploy.runtime.bundle_store import open_bundle
from tpudeploy.runtime.engine import Engine, open_engine
from tpudeploy.runtime.generator import GenerationOptions, GenerationResult, generate
from tpudeploy.runtime.prompt_lookup import PromptLookup
from tpudeploy.settings import Settings

VOCAB = 320
GROUNDED = ("summarize", "quote", "list-zh", "list-en", "repeat", "edit-code", "annotate", "fix-code", "show-function")


@pytest.fixture(autouse=True)
def _fixed_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a verify pass costs on this machine, and just now, must not decide how many there are."""
    monkeypatch.setattr(Engine, "verify_extra", lambda self: 0.126)


def answer(
    engine: Engine, prompt: Sequence[int], drafter: Drafter | None, stops: frozenset[int], limit: int | None = None
) -> GenerationResult:
    engine.forget()
    generation = generate(engine, prompt, GenerationOptions(drafter=drafter, stop_ids=stops, max_new_tokens=limit))
    for _ in generation:
        pass
    return generation.result


def tiny_engine(
    folder: Path, settings: Settings, quant: QuantMode, form: BundleFormat, nets: NetPlan, chips: int, split: Split
) -> Engine:
    adapter, variant = parse_model("chatglm3", registry())
    source = open_source(adapter, variant, settings, model_dir=folder)
    options = BuildOptions(quant=quant, format=form, nets=nets, chips=chips, split=split)
    bundle = open_bundle(build_bundle(plan_build(source, options, registry()), settings).folder)
    return open_engine(bundle, registry().backend("cpu" if form is BundleFormat.ONNX else "simulator"))


def half_right(answered: Sequence[int], prompt_tokens: int, seed: int) -> Scripted:
    chance = np.random.default_rng(seed)

    def propose(seen: list[int], limit: int) -> list[int]:
        at = len(seen) - prompt_tokens
        return [(token + (chance.random() < 0.15)) % VOCAB for token in answered[at : at + limit]]

    return Scripted(propose)


@pytest.mark.parametrize(
    ("quant", "chips", "split"),
    [
        (QuantMode.NONE, 1, Split.TENSOR),
        (QuantMode.INT8, 1, Split.TENSOR),
        (QuantMode.INT4, 1, Split.TENSOR),
        (QuantMode.INT4, 2, Split.TENSOR),
        (QuantMode.NONE, 2, Split.PIPELINE),
    ],
)
def test_random_models_answer_the_same(tmp_path: Path, quant: QuantMode, chips: int, split: Split) -> None:
    """Random weights have small leads: what nets of eight tokens round differently would show."""
    folder = write_checkpoint(tmp_path / "tiny", seed=chips)
    nets = NetPlan(seq_length=128)
    random = np.random.default_rng(0)
    accepted = tokens = 0
    home = Settings(home=tmp_path / "home")
    with tiny_engine(folder, home, quant, BundleFormat.ONNX, nets, chips, split) as engine:
        assert engine.nets.stages(NetKind.VERIFY) == (Stage(new_tokens=DEFAULT_VERIFY_TOKENS, cache_length=128),)
        for trial in range(6):
            prompt = [int(token) for token in random.integers(0, VOCAB, random.integers(1, 40))]
            plain = answer(engine, prompt, None, frozenset())
            for drafter in (PromptLookup(), half_right(plain.token_ids, len(prompt), trial)):
                drafted = answer(engine, prompt, drafter, frozenset())
                assert drafted.token_ids == plain.token_ids
                accepted += drafted.drafts.accepted
                tokens += len(drafted.token_ids)
    assert tokens > 1000 and accepted > 300


@pytest.fixture(params=[("chatglm3", QuantMode.INT8), ("glm4", QuantMode.INT4)], ids=str, scope="module")
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Engine]]:
    family, quant = request.param
    home = Settings(home=tmp_path_factory.mktemp("spec") / "home")
    folder = build(family, home, quant, BundleFormat.ONNX, NetPlan(seq_length=1024))
    with open_engine(open_bundle(folder), registry().backend("cpu")) as engine:
        yield family, engine


def test_grounded_dialogues_take_few_passes(demo: tuple[str, Engine]) -> None:
    """Modelled by the measured cycles of ChatGLM3-6B in INT8, at least 2.5 times as fast."""
    family, engine = demo
    stops = frozenset(engine.session.manifest.stop_ids)
    last = {dialogue["name"]: len(dialogue["messages"]) - 1 for dialogue in dialogues(family)}
    tokens = passes = verify_passes = 0
    for turn in turns(family):
        name, _, index = turn.name.rpartition("-")
        if not name.startswith(GROUNDED) or int(index) != last[name]:
            continue
        result = answer(engine, turn.prompt, PromptLookup(), stops)
        assert list(result.token_ids) == turn.answer, turn.name
        assert result.draft_problem == ""
        tokens += round(result.tokens_per_pass * result.drafts.passes)
        passes += result.drafts.passes
        verify_passes += result.drafts.verify_passes
    assert tokens / (passes + 0.126 * verify_passes) >= 2.5


def test_ordinary_dialogues_cost_no_more(demo: tuple[str, Engine]) -> None:
    family, engine = demo
    stops = frozenset(engine.session.manifest.stop_ids)
    for turn in turns(family)[:40]:
        if turn.name.startswith(GROUNDED):
            continue
        result = answer(engine, turn.prompt, PromptLookup(), stops)
        assert list(result.token_ids) == turn.answer, turn.name
        cost = result.drafts.passes + 0.126 * result.drafts.verify_passes
        assert cost <= 1.04 * result.tokens_per_pass * result.drafts.passes + 0.126 + 1e-6


def test_the_command_line_says_how_many_passes(tmp_path: Path) -> None:
    env = {"TPUDEPLOY_HOME": str(tmp_path / "home")}
    command = ["run", "chatglm3:demo", "--quant", "none", "--backend", "cpu"]
    question = "Repeat the following text word for word:\nINT4 is smaller and faster. INT4 is smaller and faster."
    said = json.loads(run_cli(*command, question, "--json", env=env).stdout)
    assert said["drafted_tokens"] >= said["accepted_tokens"] > 0
    assert said["tokens_per_pass"] == pytest.approx(len(said["token_ids"]) / said["passes"], rel=0.2)
    plain = run_cli(*command, question, "--draft", "none", env=env)
    assert plain.stdout.strip() == said["text"].strip()
    assert "a pass" not in plain.stderr
    assert "tokens a pass" in run_cli(*command, question, env=env).stderr
    unknown = run_cli(*command, question, "--draft", "nobody", env=env)
    assert unknown.returncode == 2 and "prompt-lookup" in unknown.stderr


@pytest.mark.toolchain
@pytest.mark.slow
def test_the_simulated_chip_answers_the_same(tmp_path: Path, installed_toolchain: Toolchain) -> None:
    """Its verify net is another program than its decode net, and rounds in its own ways."""
    folder = write_checkpoint(tmp_path / "tiny", num_layers=1, torch_dtype="float16")
    home = link_toolchain(tmp_path / "home")
    nets = NetPlan(
        seq_length=32,
        prefill=(Stage(new_tokens=8, cache_length=32),),
        verify=(Stage(new_tokens=4, cache_length=32),),
    )
    with tiny_engine(folder, home, QuantMode.INT8, BundleFormat.BMODEL, nets, 1, Split.TENSOR) as engine:
        prompt = [5, 200, 31, 7, 99]
        plain = answer(engine, prompt, None, frozenset(), 10)
        drafted = answer(engine, prompt, half_right(plain.token_ids, 5, 0), frozenset(), 10)
        assert drafted.token_ids == plain.token_ids
        assert drafted.drafts.verify_passes > 1 and drafted.drafts.accepted > 1
        assert engine.session.manifest.compiler.cycles["lm_head_s4"] > 0
