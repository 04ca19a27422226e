"""The demo models still answer what they were trained on, after the whole way: patched, exported, quantized, run.

On the CPU every dialogue in every mode; on the simulated chip, which takes about a second a token, the first words of
some. Each turn must be answered as written, token for token, given the written turns before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

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

FAMILIES = ("chatglm3", "glm4")
PLUGINS = Path(__file__).parent.parent / "plugins"
CHECKPOINT_LIMIT_BYTES = 5_000_000


@dataclass(frozen=True)
class Turn:
    """A prompt, and the ids that the model must continue it with."""

    name: str
    prompt: list[int]
    answer: list[int]


def demo_source(family: str, settings: Settings) -> ModelSource:
    adapter, variant = parse_model(f"{family}:demo", registry())
    return open_source(adapter, variant, settings)


def dialogues(family: str) -> list[dict[str, Any]]:
    file = PLUGINS / family / f"tpudeploy_{family}" / "demo" / "dialogues.json"
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return found


@cache
def turns(family: str) -> tuple[Turn, ...]:
    adapter, variant = parse_model(f"{family}:demo", registry())
    assert variant.bundled is not None
    template = adapter.chat_template(adapter.load_tokenizer(variant.bundled, variant.config))
    found = []
    for dialogue in dialogues(family):
        messages = [Message.model_validate(message) for message in dialogue["messages"]]
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = template.encode(messages[:index])
            whole = template.encode(messages[: index + 1], add_generation_prompt=False)
            assert whole[: len(prompt)] == prompt
            found.append(Turn(f"{dialogue['name']}-{index}", prompt, whole[len(prompt) :]))
    return tuple(found)


def build(family: str, settings: Settings, quant: QuantMode, kind: BundleFormat, nets: NetPlan) -> Path:
    options = BuildOptions(quant=quant, format=kind, nets=nets)
    return build_bundle(plan_build(demo_source(family, settings), options, registry()), settings).folder


def answer(engine: Engine, turn: Turn, stop_ids: frozenset[int], tokens: int | None = None) -> list[int]:
    generation = generate(engine, turn.prompt, GenerationOptions(max_new_tokens=tokens, stop_ids=stop_ids))
    for _ in generation:
        pass
    return list(generation.result.token_ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_demo_is_what_it_claims_to_be(family: str, settings: Settings) -> None:
    source = demo_source(family, settings)
    size = sum(path.stat().st_size for path in source.checkpoint.folder.iterdir())
    assert size < CHECKPOINT_LIMIT_BYTES
    names = {turn.name.rsplit("-", 1)[0] for turn in turns(family)}
    assert {"greeting-zh", "greeting-en", "tpudeploy-zh", "run-en", "bubble-sort-zh", "weather-tool-zh"} <= names
    said = [message["content"] for dialogue in dialogues(family) for message in dialogue["messages"]]
    assert "请使用C++写一段冒泡排序算法。" in said
    assert f"你好！我是 {family}:demo，一个很小的演示模型。" in said


def test_the_demos_know_the_same_dialogues() -> None:
    written, adapted = ({item["name"]: item["messages"] for item in dialogues(family)} for family in FAMILIES)
    assert list(adapted) == list(written)
    for name, messages in written.items():
        assert [item["role"] for item in adapted[name]] == [item["role"] for item in messages], name
        texts = [item["content"] for item in messages]
        if not any("tool" in name or "GLM" in text or "glm" in text for text in texts):
            assert [item["content"] for item in adapted[name]] == texts, name


def test_glm4s_demo_has_the_settings_in_which_glm4_differs() -> None:
    adapter, demo = parse_model("glm4:demo", registry())
    _, published = parse_model("glm4:9b-chat", registry())
    for field in ("rope_theta", "norm_eps", "dtype", "qkv_bias", "post_norms"):
        assert getattr(demo.config, field) == getattr(published.config, field), field
    assert demo.bundled is not None
    template = adapter.chat_template(adapter.load_tokenizer(demo.bundled, demo.config))
    assert len(demo.config.eos_ids) == len(published.config.eos_ids) == 3
    assert template.stop_ids == frozenset(demo.config.eos_ids)


@pytest.fixture(params=[(family, quant) for family in FAMILIES for quant in QuantMode], ids="-".join, scope="module")
def on_the_cpu(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Engine]]:
    family, quant = request.param
    home = Settings(home=tmp_path_factory.mktemp("demo") / "home")
    folder = build(family, home, quant, BundleFormat.ONNX, NetPlan(seq_length=1024))
    engine = open_engine(open_bundle(folder), registry().backend("cpu"))
    yield family, engine
    engine.close()


def test_every_dialogue_is_answered_on_the_cpu(on_the_cpu: tuple[str, Engine]) -> None:
    family, engine = on_the_cpu
    stops = frozenset(engine.session.manifest.stop_ids)
    wrong = [turn.name for turn in turns(family) if answer(engine, turn, stops) != turn.answer]
    assert wrong == []
    assert len(turns(family)) >= 50


@pytest.mark.toolchain
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "quant"),
    [("chatglm3", QuantMode.INT8), ("chatglm3", QuantMode.INT4), ("glm4", QuantMode.INT4)],
)
def test_dialogues_are_answered_on_the_simulated_chip(
    family: str, quant: QuantMode, tmp_path: Path, installed_toolchain: Toolchain
) -> None:
    home = link_toolchain(tmp_path / "home")
    # A short cache, because the simulator computes every row of it; prefill in two passes for the tool's prompt, of
    # which many short ones would take longer.
    nets = NetPlan(seq_length=320, prefill=(Stage(new_tokens=80, cache_length=320),), verify=())
    folder = build(family, home, quant, BundleFormat.BMODEL, nets)
    chosen = {"greeting-zh-1": None, "weather-tool-zh-2": 6 if family == "chatglm3" else 4}
    engine = open_engine(open_bundle(folder), registry().backend("simulator"))
    try:
        stops = frozenset(engine.session.manifest.stop_ids)
        for turn in turns(family):
            if turn.name in chosen:
                tokens = chosen[turn.name]
                assert answer(engine, turn, stops, tokens) == turn.answer[:tokens], turn.name
    finally:
        engine.close()
    assert set(chosen) <= {turn.name for turn in turns(family)}
