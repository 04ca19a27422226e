"""The demo model still answers what it was trained on, after the whole way: patched, exported, quantized, run.

On the CPU every dialogue in every mode; on the simulated chip, which takes about a second a token, the first words of
some. Each turn must be answered as written, token for token, given the written turns before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from conftest import link_toolchain
from tpudeploy.compile.build import build_bundle
from tpudeploy.compile.plan import BuildOptions, plan_build
from tpudeploy.compile.source import ModelSource, open_source, parse_model
from tpudeploy.compile.toolchain import Toolchain
from tpudeploy.contracts.bundle import BundleFormat
from tpudeploy.contracts.chat import Message
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.plugins import registry
from tpudeploy.runtime.bundle_store import open_bundle
from tpudeploy.runtime.engine import Engine, open_engine
from tpudeploy.runtime.generator import GenerationOptions, generate
from tpudeploy.settings import Settings

DIALOGUES = Path(__file__).parent.parent / "plugins/chatglm3/tpudeploy_chatglm3/demo/dialogues.json"
CHECKPOINT_LIMIT_BYTES = 5_000_000


@dataclass(frozen=True)
class Turn:
    """A prompt, and the ids that the model must continue it with."""

    name: str
    prompt: list[int]
    answer: list[int]


def demo_source(settings: Settings) -> ModelSource:
    adapter, variant = parse_model("chatglm3:demo", registry())
    return open_source(adapter, variant, settings)


@cache
def turns() -> tuple[Turn, ...]:
    adapter, variant = parse_model("chatglm3:demo", registry())
    assert variant.bundled is not None
    template = adapter.chat_template(adapter.load_tokenizer(variant.bundled, variant.config))
    found = []
    for dialogue in json.loads(DIALOGUES.read_text(encoding="utf-8")):
        messages = [Message.model_validate(message) for message in dialogue["messages"]]
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = template.encode(messages[:index])
            whole = template.encode(messages[: index + 1], add_generation_prompt=False)
            assert whole[: len(prompt)] == prompt
            found.append(Turn(f"{dialogue['name']}-{index}", prompt, whole[len(prompt) :]))
    return tuple(found)


def build(settings: Settings, quant: QuantMode, kind: BundleFormat, nets: NetPlan) -> Path:
    options = BuildOptions(quant=quant, format=kind, nets=nets)
    return build_bundle(plan_build(demo_source(settings), options, registry()), settings).folder


def answer(engine: Engine, turn: Turn, stop_ids: frozenset[int], tokens: int | None = None) -> list[int]:
    generation = generate(engine, turn.prompt, GenerationOptions(max_new_tokens=tokens, stop_ids=stop_ids))
    for _ in generation:
        pass
    return list(generation.result.token_ids)


def test_the_demo_is_what_it_claims_to_be(settings: Settings) -> None:
    source = demo_source(settings)
    size = sum(path.stat().st_size for path in source.checkpoint.folder.iterdir())
    assert size < CHECKPOINT_LIMIT_BYTES
    names = {turn.name.rsplit("-", 1)[0] for turn in turns()}
    assert {"greeting-zh", "greeting-en", "tpudeploy-zh", "run-en", "bubble-sort-zh", "weather-tool-zh"} <= names
    text = DIALOGUES.read_text(encoding="utf-8")
    assert "请使用C++写一段冒泡排序算法。" in text


@pytest.fixture(params=list(QuantMode), scope="module")
def cpu_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    home = Settings(home=tmp_path_factory.mktemp("demo") / "home")
    folder = build(home, request.param, BundleFormat.ONNX, NetPlan(seq_length=1024))
    engine = open_engine(open_bundle(folder), registry().backend("cpu"))
    yield engine
    engine.close()


def test_every_dialogue_is_answered_on_the_cpu(cpu_engine: Engine) -> None:
    stops = frozenset(cpu_engine.session.manifest.stop_ids)
    wrong = [turn.name for turn in turns() if answer(cpu_engine, turn, stops) != turn.answer]
    assert wrong == []
    assert len(turns()) >= 50


@pytest.mark.toolchain
@pytest.mark.slow
@pytest.mark.parametrize("quant", [QuantMode.INT8, QuantMode.INT4])
def test_dialogues_are_answered_on_the_simulated_chip(
    quant: QuantMode, tmp_path: Path, installed_toolchain: Toolchain
) -> None:
    home = link_toolchain(tmp_path / "home")
    # A short cache and short prefill passes: the simulator computes every row of them.
    nets = NetPlan(seq_length=320, prefill=(Stage(new_tokens=32, cache_length=320),))
    folder = build(home, quant, BundleFormat.BMODEL, nets)
    chosen = {"greeting-zh-1": None, "weather-tool-zh-2": 6}
    engine = open_engine(open_bundle(folder), registry().backend("simulator"))
    try:
        stops = frozenset(engine.session.manifest.stop_ids)
        for turn in turns():
            if turn.name in chosen:
                tokens = chosen[turn.name]
                assert answer(engine, turn, stops, tokens) == turn.answer[:tokens], turn.name
    finally:
        engine.close()
    assert set(chosen) <= {turn.name for turn in turns()}
