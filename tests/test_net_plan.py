"""The default stages of a sequence length: what they are, and that any length has a set that serves it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.torch_session import make_manifest, tiny_config

from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import NetKind
from tpudeploy.contracts.net_plan import NetPlan, default_cache_lengths, default_prefill, plan_nets
from tpudeploy.runtime.pass_plan import PassPlanner, stage_costs


@pytest.mark.parametrize(
    ("seq_length", "prefill", "decode"),
    [
        (1, "1x1", (1,)),
        (64, "64x64", (64,)),
        (128, "64x128 128x0", (128,)),
        (200, "128x200 64x200 200x0", (200,)),
        (256, "128x256 64x256 256x0", (256,)),
        (512, "128x512 64x512 256x512 512x0", (512,)),
        (1024, "128x1024 64x1024 256x1024 512x1024", (1024,)),
        (2048, "128x2048 128x512 64x2048 64x512 256x512 512x2048 512x512", (2048, 512)),
        (8192, "128x8192 128x512 128x2048 64x8192 64x512 64x2048 256x512 512x8192 512x512 512x2048", (8192, 512, 2048)),
    ],
)
def test_default_stages(seq_length: int, prefill: str, decode: tuple[int, ...]) -> None:
    assert " ".join(map(str, default_prefill(seq_length))) == prefill
    assert default_cache_lengths(seq_length) == decode


def test_plain_names_mean_the_whole_cache() -> None:
    config = tiny_config().model_copy(update={"seq_length": 4096})
    nets = plan_nets(config, NetPlan(seq_length=2048), DType.F16)
    assert nets.net("block_cache_0").stage.cache_length == nets.net("block_kv_0").stage.cache_length == 2048


@settings(deadline=None)
@given(st.integers(1, 40_000))
def test_any_length_is_served(seq_length: int) -> None:
    config = tiny_config().model_copy(update={"seq_length": seq_length})
    for plan in (NetPlan(seq_length=seq_length), NetPlan(seq_length=seq_length).simplest()):
        nets = plan_nets(config, plan, DType.F16)
        stages = sorted(
            {net.stage for net in nets.nets if net.kind.is_block},
            key=lambda stage: (stage.new_tokens, stage.cache_length),
        )
        planner = PassPlanner(stages, stage_costs(make_manifest(nets), stages))
        passes = planner.plan(0, seq_length)
        assert sum(stages[index].new_tokens for index in passes) >= seq_length
        assert stages[planner.first(seq_length - 1, 1)].cache_length == seq_length


def test_what_the_user_names_stays() -> None:
    plan = NetPlan(seq_length=512, decode_cache_lengths=(128, 512)).simplest()
    assert plan.decode_cache_lengths == (128, 512)
    assert [str(stage) for stage in plan.prefill] == ["128x512"]
    nets = plan_nets(tiny_config().model_copy(update={"seq_length": 512}), plan, DType.F16)
    assert [str(stage) for stage in nets.stages(NetKind.DECODE)] == ["1x128", "1x512"]
