"""Choosing passes by cost: against every possible way, by the rule of thumb, and within an engine."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.torch_session import (
    TorchSession,
    make_manifest,
    random_decoder,
    reference_logits,
    tiny_config,
)

from tpudeploy.contracts.bundle import CompilerInfo, Manifest
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import Stage
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.runtime.engine import Engine
from tpudeploy.runtime.pass_plan import PassPlanner, guessed_cost, stage_costs

torch.set_num_threads(1)


def stages(*pairs: tuple[int, int]) -> tuple[Stage, ...]:
    return tuple(Stage(new_tokens=new, cache_length=cache) for new, cache in pairs)


MEASURED = {(1, 512): 4015, (8, 512): 4545, (128, 512): 5244, (256, 512): 9149, (512, 0): 17534}
"""Thousands of cycles a layer of ChatGLM3 in INT8: what the compiler's model said."""


def sizes(planner: PassPlanner, shapes: tuple[Stage, ...], cached: int, count: int) -> list[int]:
    return [shapes[index].new_tokens for index in planner.plan(cached, count)]


@pytest.mark.parametrize(
    ("cached", "count", "expected"),
    [
        (0, 1, [1]),
        (0, 2, [8]),
        (100, 8, [8]),
        (0, 9, [128]),
        (0, 128, [128]),
        (0, 129, [256]),
        (0, 150, [256]),
        (0, 300, [256, 128]),
        (0, 384, [256, 128]),
        (0, 400, [512]),
        (1, 400, [256, 256]),
        (0, 512, [512]),
    ],
)
def test_what_was_measured_gives_these_passes(cached: int, count: int, expected: list[int]) -> None:
    shapes = stages(*MEASURED)
    planner = PassPlanner(shapes, list(MEASURED.values()))
    assert sizes(planner, shapes, cached, count) == expected
    assert shapes[planner.first(cached, count)].new_tokens == sizes(planner, shapes, cached, count)[0]


def test_short_contexts_do_not_pay_for_long_ones() -> None:
    shapes = stages((1, 512), (1, 2048), (128, 512), (128, 2048))
    planner = PassPlanner(shapes, [40, 41, 52, 56])
    assert [shapes[planner.first(cached, 1)].cache_length for cached in (0, 512, 513, 2047)] == [512, 512, 2048, 2048]
    assert [shapes[i].cache_length for i in planner.plan(0, 1024)] == [512] * 5 + [2048] * 3
    with pytest.raises(ValueError, match="2049"):
        planner.plan(2048, 2)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_way_is_cheaper(data: st.DataObject) -> None:
    """Compared with all ways of full passes, the last of which may be padded."""
    total = data.draw(st.integers(1, 24))
    cached = data.draw(st.integers(0, total - 1))
    pairs = data.draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 24)), max_size=4))
    shapes = stages((data.draw(st.integers(1, 9)), 24), *pairs)
    costs = [data.draw(st.integers(1, 20)) for _ in shapes]

    @cache
    def cheapest(left: int) -> int:
        if left <= 0:
            return 0
        able = [i for i, stage in enumerate(shapes) if stage.cache_length >= total - left]
        return min(costs[i] + cheapest(left - shapes[i].new_tokens) for i in able)

    planner = PassPlanner(shapes, costs)
    # All of it lies in the tail that is planned exactly, where the largest stage is not too small.
    if total - cached <= 4 * max(stage.new_tokens for stage in shapes):
        plan = planner.plan(cached, total - cached)
        assert sum(costs[i] for i in plan) == cheapest(total - cached)
    at = cached
    for index in planner.plan(cached, total - cached):
        assert at < total and shapes[index].cache_length >= at
        at += shapes[index].new_tokens
    assert at >= total


def test_a_long_prompt_takes_the_stage_that_is_cheapest_a_token() -> None:
    shapes = stages((1, 131072), (128, 131072), (512, 131072))
    plan = PassPlanner(shapes, [40, 52, 180]).plan(0, 131072)
    assert len(plan) == 256 and {shapes[i].new_tokens for i in plan} == {512}


def manifest(plan: NetPlan, cost: float = 0.0) -> Manifest:
    nets = plan_nets(tiny_config(), plan, DType.F32)
    cycles = {net.name: int(cost * net.stage.new_tokens) + 1000 for net in nets.nets if cost}
    whole = make_manifest(nets)
    return whole.model_copy(update={"compiler": CompilerInfo(name="tpu-mlir", version="1", cycles=cycles)})


PLAN = NetPlan(seq_length=64, prefill=stages((8, 64), (32, 64)), verify=())


def test_costs_are_the_sums_of_the_modelled_cycles() -> None:
    shapes = stages((1, 64), (8, 64), (32, 64))
    layers = tiny_config().num_layers
    assert stage_costs(manifest(PLAN, 10), shapes) == [layers * 1010, layers * 1080, layers * 1320]


def test_one_unknown_net_and_all_costs_are_guessed() -> None:
    shapes = stages((1, 64), (8, 64), (32, 64))
    known = manifest(PLAN, 10)
    some = {name: n for name, n in known.compiler.cycles.items() if name != "block_kv_1_s32_c64"}
    partial = known.model_copy(update={"compiler": known.compiler.model_copy(update={"cycles": some})})
    assert stage_costs(partial, shapes) == [guessed_cost(stage) for stage in shapes]
    assert stage_costs(manifest(PLAN), shapes) == [guessed_cost(stage) for stage in shapes]


def test_the_rule_of_thumb_is_near_what_was_measured() -> None:
    base = guessed_cost(Stage(new_tokens=128, cache_length=512))
    for (new, length), cycles in {(64, 512): 4618, (192, 512): 7455, **MEASURED}.items():
        if new >= 64:
            ratio = guessed_cost(Stage(new_tokens=new, cache_length=length)) / base
            assert ratio == pytest.approx(cycles / MEASURED[128, 512], rel=0.1)


@pytest.mark.parametrize(("cost", "expected"), [(1.0, [32]), (1000.0, [8, 8, 8])])
def test_the_engine_goes_by_the_cycles_of_its_bundle(
    monkeypatch: pytest.MonkeyPatch, cost: float, expected: list[int]
) -> None:
    decoder = random_decoder(tiny_config())
    engine = Engine(TorchSession(manifest(PLAN, cost), decoder))
    ids = [int(token) for token in np.random.default_rng(3).integers(0, 101, 24)]
    ran: list[int] = []
    for step in engine._passes:
        run = step.run
        monkeypatch.setattr(
            step, "run", lambda chunk, run=run, step=step: (ran.append(step.stage.new_tokens), run(chunk))
        )
    logits = engine.forward(ids)
    assert ran == expected
    np.testing.assert_allclose(logits[0], reference_logits(decoder, ids)[-1], atol=2e-4)
