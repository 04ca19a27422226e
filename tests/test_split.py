"""A model on several chips answers as on one: every way of dividing it, every kind of net, CPU and simulated chips."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import link_toolchain
from shared_data import shared_path
from test_graph import EVERY_KIND, source_of
from tiny import write_checkpoint
from torch_session import tiny_config
from tpudeploy.compile.build import build_bundle
from tpudeploy.compile.plan import BuildOptions, BuildPlan, plan_build
from tpudeploy.compile.toolchain import Toolchain
from tpudeploy.contracts.bundle import BundleFormat
from tpudeploy.contracts.dtypes import Array, DType
from tpudeploy.contracts.net import LayerPart, NetKind, Split, Stage
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.contracts.net_split import split_nets
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.contracts.shard import part_of, shards
from tpudeploy.errors import BackendError, BundleError, UsageError
from tpudeploy.graph.reference import greedy, load_decoder
from tpudeploy.plugins import registry
from tpudeploy.runtime.bundle_store import open_bundle
from tpudeploy.runtime.engine import Engine, open_engine
from tpudeploy.runtime.footprint import footprints
from tpudeploy.runtime.generator import GenerationOptions, generate
from tpudeploy.settings import Settings

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]
WAYS = [(2, Split.TENSOR), (4, Split.TENSOR), (2, Split.PIPELINE)]
ids_of_ways = [f"{chips}-{split.value}" for chips, split in WAYS]


def plan_of(folder: Path, chips: int, split: Split, **options: object) -> BuildPlan:
    chosen = {"quant": QuantMode.NONE, "format": BundleFormat.ONNX, "nets": EVERY_KIND} | options
    return plan_build(
        source_of(folder), BuildOptions.model_validate(chosen | {"chips": chips, "split": split}), registry()
    )


def answer(engine: Engine, tokens: int) -> list[int]:
    generation = generate(engine, PROMPT, GenerationOptions(max_new_tokens=tokens))
    return [event.token_id for event in generation]


@cache
def reference(folder: Path, tokens: int) -> list[int]:
    return greedy(load_decoder(source_of(folder).weights()), PROMPT, tokens)


class TestShards:
    @given(st.integers(1, 8), st.integers(1, 4000))
    def test_parts_cover_all_rows_once(self, chips: int, total: int) -> None:
        if total < chips:
            with pytest.raises(UsageError, match="cannot be divided"):
                part_of(total, 0, chips)
            return
        parts = [part_of(total, chip, chips) for chip in range(chips)]
        assert [row for start, stop in parts for row in range(start, stop)] == list(range(total))
        assert all(stop > start for start, stop in parts)

    @given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]))
    def test_each_chip_holds_the_keys_that_its_heads_need(self, groups: int, repeats: int, chips: int) -> None:
        config = tiny_config(num_heads=groups * repeats, num_kv_heads=groups)
        if config.num_heads % chips:
            with pytest.raises(UsageError, match="cannot be divided over"):
                list(shards(config, chips))
            return
        for shard in shards(config, chips):
            needed = {head // repeats for head in range(*shard.heads)}
            assert needed == set(range(*shard.kv_heads))
            # A chip's own grouped attention gives head h the key head that the whole model gives it.
            own = shard.config(config)
            share = own.num_heads // own.num_kv_heads
            for local, head in enumerate(range(*shard.heads)):
                assert shard.kv_heads[0] + local // share == head // repeats

    def test_groups_of_the_quantizer_stay_whole(self) -> None:
        glm = tiny_config(num_heads=32, num_kv_heads=2, ffn_size=13696, vocab_size=65024, hidden_size=4096)
        for chips in (2, 4, 8):
            assert all(shard.ffn[0] % 64 == 0 and shard.vocab[0] % 64 == 0 for shard in shards(glm, chips))


class TestNetSet:
    def test_pipeline_balances_embedding_and_output_layer(self) -> None:
        config = tiny_config(num_layers=28)
        nets = split_nets(plan_nets(config, NetPlan(seq_length=64), DType.F16), 4, Split.PIPELINE)
        layers = [[net.layer for net in nets.of_kind(NetKind.DECODE) if net.chip == chip] for chip in range(4)]
        assert [layer for part in layers for layer in part] == list(range(28))
        assert all(layers)
        assert len(layers[0]) <= len(layers[1])
        assert nets.net("lm_head").chip == 3

    def test_one_chip_is_left_as_it_is(self) -> None:
        nets = plan_nets(tiny_config(), NetPlan(seq_length=64), DType.F16)
        assert split_nets(nets, 1, Split.TENSOR) is nets

    def test_more_chips_than_layers(self) -> None:
        with pytest.raises(UsageError, match="layers cannot be divided over 9 chips"):
            split_nets(plan_nets(tiny_config(), NetPlan(seq_length=64), DType.F16), 9, Split.PIPELINE)

    def test_more_chips_than_there_can_be(self, tmp_path: Path) -> None:
        for split in Split:
            with pytest.raises(UsageError, match="1 to 64 chips, not 65"):
                plan_of(write_checkpoint(tmp_path / split.value), 65, split)

    def test_titles_tell_how(self, tmp_path: Path) -> None:
        folder = write_checkpoint(tmp_path / "c")
        assert plan_of(folder, 2, Split.TENSOR).title == "chatglm3-custom_none_seq64_2dev_cpu"
        assert plan_of(folder, 2, Split.PIPELINE).title == "chatglm3-custom_none_seq64_2dev-pipeline_cpu"

    def test_heads_that_cannot_be_divided(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="4 heads that share 2 key/value heads cannot be divided over 3 chips"):
            plan_of(write_checkpoint(tmp_path / "c"), 3, Split.TENSOR)

    def test_norms_over_what_no_chip_has(self) -> None:
        with pytest.raises(UsageError, match="normalizes the sum of what a layer adds"):
            list(shards(tiny_config(post_norms=True), 2))

    def test_a_chip_that_lacks_a_net_is_told(self, tmp_path: Path) -> None:
        plan = plan_of(write_checkpoint(tmp_path / "c"), 2, Split.TENSOR)
        folder = build_bundle(plan, Settings(home=tmp_path / "home")).folder
        bundle = open_bundle(folder)
        nets = bundle.manifest.nets
        fewer = tuple(net for net in nets.nets if net.name != "block_cache_1_ffn_chip1")
        changed = bundle.manifest.model_copy(update={"nets": nets.model_copy(update={"nets": fewer})})
        session = registry().backend("cpu").open(folder, changed, devices=(0, 0))
        with session, pytest.raises(BundleError, match="no block_cache net of stage 1x64 for layer 1"):
            Engine(session)


@pytest.mark.parametrize(("chips", "split"), WAYS, ids=ids_of_ways)
class TestOnTheCpu:
    def test_every_net_is_checked_and_the_answer_is_the_same(self, tmp_path: Path, chips: int, split: Split) -> None:
        folder = write_checkpoint(tmp_path / "c")
        plan = plan_of(folder, chips, split)
        built = build_bundle(plan, Settings(home=tmp_path / "home"))
        assert {check.net for check in built.checks} == {net.name for net in plan.net_set.nets}
        assert max(check.max_error for check in built.checks) < 2e-5
        with open_engine(open_bundle(built.folder), registry().backend("cpu")) as engine:
            counted = sum(part.kv_bytes + part.other_bytes for part in footprints(plan.net_set))
            assert counted == engine.session.memory().buffers_bytes
            assert answer(engine, 30) == reference(folder, 30)
            # Rolled back and asked again, with several rows of logits at once.
            engine.reuse(PROMPT)
            several = engine.forward(PROMPT[-1:], rows=1)
            engine.cache.truncate(0)
            assert np.abs(engine.forward(PROMPT, rows=4)[-1] - several[0]).max() < 1e-4

    @pytest.mark.parametrize("quant", [QuantMode.INT8, QuantMode.INT4])
    def test_weights_are_quantized_as_on_one_chip(
        self, tmp_path: Path, chips: int, split: Split, quant: QuantMode
    ) -> None:
        # Wide enough that every chip's rows are whole groups of the quantizer.
        folder = write_checkpoint(tmp_path / "c", ffn_hidden_size=512, kv_channels=64, padded_vocab_size=512)

        def logits(count: int) -> Array:
            plan = plan_of(folder, count, split, quant=quant)
            bundle = open_bundle(build_bundle(plan, Settings(home=tmp_path / "home")).folder)
            with open_engine(bundle, registry().backend("cpu")) as engine:
                return engine.forward(PROMPT, rows=len(PROMPT))

        one, several = logits(1), logits(chips)
        assert np.abs(one - several).max() < 2e-4 * np.abs(one).max()


def test_the_original_model_on_two_chips(tmp_path: Path) -> None:
    folder = shared_path("golden/tiny-chatglm3")
    plan = plan_of(folder, 2, Split.TENSOR, nets=NetPlan(seq_length=128))
    bundle = open_bundle(build_bundle(plan, Settings(home=tmp_path / "home")).folder)
    with open_engine(bundle, registry().backend("cpu")) as engine:
        assert answer(engine, 32) == reference(folder, 32)


@pytest.mark.toolchain
@pytest.mark.slow
@pytest.mark.parametrize("split", list(Split))
def test_two_simulated_chips(tmp_path: Path, installed_toolchain: Toolchain, split: Split) -> None:
    layers = 1 if split is Split.TENSOR else 2  # of a divided layer, two nets a chip and stage are compiled
    folder = write_checkpoint(tmp_path / "c", num_layers=layers, torch_dtype="float16")
    nets = NetPlan(seq_length=32, prefill=(Stage(new_tokens=8, cache_length=32),), verify=())
    home = link_toolchain(tmp_path / "home")
    plan = plan_of(folder, 2, split, nets=nets, quant=QuantMode.F16, format=BundleFormat.BMODEL)
    bundle = open_bundle(build_bundle(plan, home).folder)
    assert {"chip0.bmodel", "chip1.bmodel"} == {file.path for file in bundle.manifest.files}
    parts = {net.part for net in bundle.manifest.nets.nets}
    assert parts == ({LayerPart.WHOLE} if split is Split.PIPELINE else set(LayerPart))
    simulator = registry().backend("simulator")
    with pytest.raises(BackendError, match="different devices, not 1, 1"):
        open_engine(bundle, simulator, devices=(1, 1))
    with open_engine(bundle, simulator, devices=(2, 5)) as engine:
        assert answer(engine, 3) == reference(folder, 3)
        assert engine.session.memory().weights_bytes > 0
