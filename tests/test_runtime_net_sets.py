"""Net sets of every kind: layers on several chips, sets that cannot run, opening and closing; masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.torch_session import (
    TorchBackend,
    TorchSession,
    make_manifest,
    random_decoder,
    reference_logits,
    tiny_config,
)

from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import NetKind, NetSet, Split, Stage
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.contracts.net_split import split_nets
from tpudeploy.errors import BundleError, UsageError
from tpudeploy.graph.decoder import Decoder
from tpudeploy.runtime.bundle_store import Bundle
from tpudeploy.runtime.engine import Engine, open_engine
from tpudeploy.runtime.net_check import NetChecker
from tpudeploy.runtime.passes import AttentionMask
from tpudeploy.runtime.stage_nets import find_heads

torch.set_num_threads(1)
SEQ = 320
PLAN = NetPlan(seq_length=SEQ, prefill=(Stage(new_tokens=16, cache_length=SEQ),), verify=())
STAGES = NetPlan(
    seq_length=SEQ,
    prefill=tuple(Stage(new_tokens=new, cache_length=cache) for new, cache in ((32, 0), (16, 64), (64, SEQ))),
    decode_cache_lengths=(32, SEQ),
    verify=(Stage(new_tokens=4, cache_length=SEQ),),
)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return random_decoder(tiny_config())


def with_chips(nets: NetSet, chips: dict[int | None, int], count: int) -> NetSet:
    """Move the nets of each layer, and (under None) the output layer, to a chip."""
    moved = [
        net.model_copy(
            update={"chip": chips[None if net.kind is NetKind.LM_HEAD else net.layer]}
            if net.layer is not None or net.kind is NetKind.LM_HEAD
            else {}
        )
        for net in nets.nets
    ]
    return nets.model_copy(update={"nets": tuple(moved), "chips": count})


@pytest.mark.parametrize(
    "chips", [{0: 0, 1: 1, 2: 1, None: 1}, {0: 1, 1: 2, 2: 0, None: 2}, {0: 0, 1: 0, 2: 0, None: 1}]
)
def test_layers_on_several_chips(decoder: Decoder, chips: dict[int | None, int]) -> None:
    nets = plan_nets(decoder.config, STAGES, DType.F32)
    ids = [int(token) for token in np.random.default_rng(3).integers(0, 101, SEQ)]
    expected = reference_logits(decoder, ids)
    engine = Engine(TorchSession(make_manifest(with_chips(nets, chips, 3)), decoder))
    for length in (1, 2, 50, 51, 200):
        np.testing.assert_allclose(
            engine.forward(ids[engine.reuse(ids[:length]) : length])[0], expected[length - 1], atol=2e-4
        )
    np.testing.assert_allclose(engine.forward(ids[200:204], rows=4), expected[200:204], atol=2e-4)


def without(nets: NetSet, *names: str) -> NetSet:
    return nets.model_copy(update={"nets": tuple(net for net in nets.nets if net.name not in names)})


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (("block_kv_1",), "block_kv .* layer 1"),
        (("embedding",), "embedding for 16 tokens"),
        (("embedding_cache",), "embedding for 1 tokens"),
        (("lm_head",), "lm_head"),
        (tuple(f"block_{kind}_{layer}" for kind in ("kv", "cache") for layer in range(3)), "no block net"),
    ],
)
def test_an_incomplete_net_set_is_refused(decoder: Decoder, missing: tuple[str, ...], message: str) -> None:
    nets = without(plan_nets(decoder.config, PLAN, DType.F32), *missing)
    with pytest.raises(BundleError, match=message):
        Engine(TorchSession(make_manifest(nets), decoder))


def test_nets_of_another_shape_are_refused(decoder: Decoder) -> None:
    nets = plan_nets(decoder.config, PLAN, DType.F32)
    for name in ("attention_mask", "position_ids"):
        changed = []
        for net in nets.nets:
            inputs = tuple(
                spec.model_copy(update={"shape": (*spec.shape, 2)}) if spec.name == name else spec
                for spec in net.inputs
            )
            changed.append(net.model_copy(update={"inputs": inputs}))
        with pytest.raises(BundleError, match="does not take"):
            Engine(TorchSession(make_manifest(nets.model_copy(update={"nets": tuple(changed)})), decoder))


@pytest.mark.parametrize(
    ("net", "change", "message"),
    [
        ("lm_head", {"outputs": ()}, "lm_head does not give logits"),
        ("lm_head", {"inputs": ()}, "lm_head does not take hidden_states"),
        ("embedding", {"inputs": ()}, "embedding does not take input_ids"),
        ("embedding_cache", {"outputs": ()}, "embedding_cache does not give input_states"),
        ("block_cache_1", {"outputs": ()}, "block_cache_1 does not give output_states"),
    ],
)
def test_nets_without_a_tensor_are_refused(decoder: Decoder, net: str, change: dict[str, object], message: str) -> None:
    nets = plan_nets(decoder.config, PLAN, DType.F32)
    changed = tuple(spec.model_copy(update=change) if spec.name == net else spec for spec in nets.nets)
    with pytest.raises(BundleError, match=message):
        Engine(TorchSession(make_manifest(nets.model_copy(update={"nets": changed})), decoder))


@pytest.mark.parametrize("chips", [1, 2])
@pytest.mark.parametrize("vocab", [100, 102, 404])
def test_a_vocabulary_that_is_not_the_nets_is_refused(decoder: Decoder, chips: int, vocab: int) -> None:
    """Where the table is divided, ids are counted by it: wrong, they would be other tokens, or none at all."""
    nets = split_nets(plan_nets(decoder.config, PLAN, DType.F32), chips, Split.TENSOR)
    lying = nets.model_copy(update={"config": nets.config.model_copy(update={"vocab_size": vocab})})
    for net in find_heads(nets)[1]:
        NetChecker(nets).check(net)
    with pytest.raises(BundleError, match="does not give logits"):
        find_heads(lying)


def test_chips_that_cannot_divide_the_model_are_refused(decoder: Decoder) -> None:
    nets = plan_nets(decoder.config, PLAN, DType.F32).model_copy(update={"chips": 3, "split": Split.TENSOR})
    with pytest.raises(BundleError, match="cannot be divided over 3 chips"):
        NetChecker(nets)


def test_stages_that_disagree_about_chips_are_refused(decoder: Decoder) -> None:
    nets = plan_nets(decoder.config, PLAN, DType.F32)
    moved = tuple(net.model_copy(update={"chip": 1}) if net.name == "block_cache_1" else net for net in nets.nets)
    with pytest.raises(BundleError, match="different chips"):
        Engine(TorchSession(make_manifest(nets.model_copy(update={"nets": moved, "chips": 2})), decoder))


def test_opening_an_engine(decoder: Decoder, tmp_path: Path) -> None:
    backend = TorchBackend(decoder)
    manifest = make_manifest(plan_nets(decoder.config, PLAN, DType.F32))
    with open_engine(Bundle(tmp_path, manifest), backend) as engine:
        assert engine.forward([1, 2]).shape == (1, 101)
    assert backend.sessions[0].closed
    with pytest.raises(UsageError, match=r"for 1 chip, and --device names 2\. Name 1 device, for example --device 0\."):
        open_engine(Bundle(tmp_path, manifest), backend, devices=(0, 1))
    backend.formats = frozenset()
    with pytest.raises(BundleError, match="does not run onnx"):
        open_engine(Bundle(tmp_path, manifest), backend)


def test_a_bundle_that_cannot_run_closes_its_session(decoder: Decoder, tmp_path: Path) -> None:
    backend = TorchBackend(decoder)
    nets = without(plan_nets(decoder.config, PLAN, DType.F32), "lm_head")
    with pytest.raises(BundleError):
        open_engine(Bundle(tmp_path, make_manifest(nets)), backend)
    assert backend.sessions[0].closed


@settings(max_examples=100, deadline=None)
@given(
    new=st.integers(1, 9),
    cache=st.integers(0, 12),
    dtype=st.sampled_from([DType.F32, DType.F16, DType.BF16]),
    lengths=st.data(),
)
def test_a_mask_follows_the_cache(new: int, cache: int, dtype: DType, lengths: st.DataObject) -> None:
    mask = AttentionMask(Stage(new_tokens=new, cache_length=cache), dtype)
    for _ in range(4):
        cached = lengths.draw(st.integers(0, cache))
        mask.show(cached)
        fresh = AttentionMask(Stage(new_tokens=new, cache_length=cache), dtype)
        fresh.show(cached)
        assert np.array_equal(mask.values, fresh.values)
        visible = np.concatenate([np.tile(np.arange(cache) < cached, (new, 1)), np.tri(new, dtype=bool)], axis=1)
        assert np.array_equal(mask.values == 0, visible)
        if lengths.draw(st.booleans()):
            mask.written(cached)
            assert not mask.show(cached)
