"""The weight table against real checkpoints: shapes, completeness, and the original code's logits."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.shared_data import shared_path

from tpudeploy.contracts.adapter import ModelVariant
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.weights import weight_shapes
from tpudeploy_chatglm3.adapter import ChatGLM3
from tpudeploy_chatglm3.config import read_config
from tpudeploy_chatglm3.variants import DEMO

pytest.importorskip("torch", reason="needs the export extra")
pytest.importorskip("safetensors", reason="needs the export extra")

import torch
from safetensors.torch import load_file

from tpudeploy.graph.decoder import Decoder, parameter_name

ADAPTER = ChatGLM3()


def tiny() -> Path:
    return shared_path("golden", "tiny-chatglm3")


def read_weights(folder: Path) -> tuple[DecoderConfig, dict[str, torch.Tensor], set[str]]:
    """The config, the canonical weights, and the names of tensors that no weight came from."""
    config = read_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    tensors = load_file(folder / "model.safetensors")
    table = ADAPTER.weight_table(config)
    weights = {
        name: tensors[ref.tensor] if ref.rows is None else tensors[ref.tensor][slice(*ref.rows)]
        for name, ref in table.items()
    }
    return config, weights, set(tensors) - {ref.tensor for ref in table.values()}


def load_decoder(folder: Path) -> Decoder:
    config, weights, _ = read_weights(folder)
    decoder = Decoder(config)
    decoder.load_state_dict({parameter_name(name): weight.float() for name, weight in weights.items()})
    return decoder.eval()


@pytest.mark.parametrize("folder", [tiny, lambda: DEMO], ids=["tiny", "demo"])
def test_every_weight_has_its_shape_and_no_tensor_is_forgotten(folder: Callable[[], Path]) -> None:
    config, weights, unused = read_weights(folder())
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == dict(weight_shapes(config))
    assert all(name.endswith("rotary_pos_emb.inv_freq") for name in unused)


@pytest.mark.parametrize("variant", ADAPTER.variants(), ids=lambda variant: variant.name)
@pytest.mark.parametrize("bias", [True, False])
def test_the_table_is_complete_and_splits_fused_rows_without_gap(variant: ModelVariant, bias: bool) -> None:
    config = variant.config.model_copy(update={"qkv_bias": bias})
    table, shapes = ADAPTER.weight_table(config), dict(weight_shapes(config))
    assert table.keys() == shapes.keys()
    rows = defaultdict(list)
    for name, ref in table.items():
        if ref.rows is not None:
            assert ref.rows[1] - ref.rows[0] == shapes[name][0], name
            rows[ref.tensor].append(ref.rows)
    for parts in rows.values():
        assert [0, *(stop for _, stop in parts)][:-1] == [start for start, _ in parts]
    whole = [ref.tensor for ref in table.values() if ref.rows is None]
    assert len(set(whole)) == len(whole)
    assert not set(whole) & rows.keys()


@pytest.mark.parametrize("prompt", ["rand1", "rand2", "rand5", "rand16"])
def test_logits_are_those_of_the_original_code(prompt: str) -> None:
    golden = np.load(tiny() / "golden.npz")
    with torch.no_grad():
        logits = load_decoder(tiny())(torch.tensor(golden[f"{prompt}_ids"])[None])[0]
    np.testing.assert_allclose(logits.numpy(), golden[f"{prompt}_logits"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("prompt", ["rand33", "rand100"])
def test_long_prompts_too(prompt: str) -> None:
    golden = np.load(tiny() / "golden.npz")
    with torch.no_grad():
        logits = load_decoder(tiny())(torch.tensor(golden[f"{prompt}_ids"])[None])[0].numpy()
    np.testing.assert_allclose(logits[-4:], golden[f"{prompt}_logits_last4"], atol=2e-5, rtol=0)
    np.testing.assert_array_equal(logits.argmax(-1), golden[f"{prompt}_logits_argmax"])
