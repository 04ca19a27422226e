"""Model x backend x quantization mode x chips: each answers what the CPU answers in the same mode (see matrix.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import glm4_checkpoints
import tiny
from conftest import link_toolchain
from glm4_files import AUTHORS_CONFIG
from matrix import Cell, cells
from matrix_cell import answer
from test_demo import turns
from tpudeploy.compile.build import build_bundle
from tpudeploy.compile.plan import BuildOptions, plan_build
from tpudeploy.compile.source import ModelSource, open_source, parse_model
from tpudeploy.compile.toolchain import Toolchain, simulator_libs
from tpudeploy.contracts.bundle import BundleFormat
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.graph.reference import greedy, load_decoder
from tpudeploy.plugins import registry
from tpudeploy.settings import Settings, load_settings

TOKENS = 3
PROMPT = [3, 1, 4, 1, 5, 9]
TINY = NetPlan(seq_length=16, prefill=(Stage(new_tokens=4, cache_length=16),), verify=())
DEMO = NetPlan(
    seq_length=64,
    prefill=(Stage(new_tokens=32, cache_length=64),),
    verify=(Stage(new_tokens=4, cache_length=64),),
)
Bundles = Callable[[str, str, int, BundleFormat], Path]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Bundles:
    root = tmp_path_factory.mktemp("matrix")

    @cache
    def home(*, with_chip: bool) -> Settings:
        if with_chip:
            request.getfixturevalue("installed_toolchain")
            return link_toolchain(root / "chip")
        return Settings(home=root / "cpu")

    @cache
    def bundle(model: str, mode: str, chips: int, form: BundleFormat) -> Path:
        settings = home(with_chip=form is BundleFormat.BMODEL)
        source = source_of(model, root, settings)
        quant = QuantMode(source.adapter.half.value if mode == "half" else mode)
        nets = DEMO if ":" in model else TINY
        options = BuildOptions(quant=quant, format=form, nets=nets, chips=chips)
        return build_bundle(plan_build(source, options, registry()), settings).folder

    return bundle


def source_of(model: str, root: Path, settings: Settings) -> ModelSource:
    adapter, variant = parse_model(model, registry())
    if ":" in model:
        return open_source(adapter, variant, settings)
    folder = root / f"checkpoint-{model}"
    if not folder.exists():
        if model == "glm4":
            sizes = {"num_layers": 1, "hidden_size": 128, "ffn_hidden_size": 192, "kv_channels": 32}
            config = AUTHORS_CONFIG | sizes
            glm4_checkpoints.write_checkpoint(folder, config, glm4_checkpoints.random_authors(config))
        else:
            tiny.write_checkpoint(folder, num_layers=1)
    return open_source(adapter, variant, settings, model_dir=folder)


def question(model: str) -> tuple[list[int], list[int] | None]:
    """A prompt, and the answer that a demo is known to give."""
    if ":" not in model:
        return PROMPT, None
    turn = next(turn for turn in turns(model.partition(":")[0]) if turn.name == "greeting-zh-1")
    return turn.prompt, turn.answer[:TOKENS]


def expected(cell: Cell, bundles: Bundles, prompt: list[int]) -> list[int]:
    """What the torch reference answers unquantized, and in a mode what one CPU does."""
    if cell.mode == "none":
        folder = bundles(cell.model, cell.mode, 1, BundleFormat.ONNX).parents[2] / f"checkpoint-{cell.model}"
        adapter, variant = parse_model(cell.model, registry())
        source = open_source(adapter, variant, Settings(home=folder), model_dir=folder)
        return greedy(load_decoder(source.weights()), prompt, TOKENS)
    return answer("cpu", bundles(cell.model, cell.mode, 1, BundleFormat.ONNX), TOKENS, prompt)


def run_cell(cell: Cell, folder: Path, prompt: list[int], toolchain: Toolchain) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if cell.backend == "bmrt":
        environment["TPUDEPLOY_LIBSOPHON"] = str(simulator_libs(toolchain, load_settings()))
    command = [sys.executable, str(Path(__file__).with_name("matrix_cell.py")), cell.backend, str(folder), str(TOKENS)]
    command.append(",".join(map(str, prompt)))
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.slow
@pytest.mark.toolchain
@pytest.mark.parametrize("cell", list(cells()), ids=str)
def test_cell(cell: Cell, bundles: Bundles, request: pytest.FixtureRequest) -> None:
    if not cell.quick and not request.config.getoption("--full-matrix"):
        pytest.skip("only with --full-matrix: another cell runs the same nets on this backend")
    prompt, known = question(cell.model)
    wanted = known or expected(cell, bundles, prompt)
    if cell.backend == "cpu":
        found = answer("cpu", bundles(cell.model, cell.mode, cell.chips, BundleFormat.ONNX), TOKENS, prompt)
        assert found == wanted
        return
    folder = bundles(cell.model, cell.mode, cell.chips, BundleFormat.BMODEL)
    done = run_cell(cell, folder, prompt, request.getfixturevalue("installed_toolchain"))
    if cell.failure:
        assert done.returncode == 1, f"this works now, although {cell.failure}: {done.stdout}"
        assert cell.failure_text in done.stderr
        return
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("ids: "))
    assert json.loads(line.removeprefix("ids: ")) == wanted
