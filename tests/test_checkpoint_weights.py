"""Canonical weights: rows of fused tensors, shapes, types and numbers held against the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from torch_session import tiny_config
from tpudeploy.checkpoint.reader import Checkpoint
from tpudeploy.checkpoint.weights import ModelWeights
from tpudeploy.contracts.weights import WeightRef, weight_shapes
from tpudeploy.errors import CheckpointError, PluginError

CONFIG = tiny_config(num_layers=1)
SHAPES = dict(weight_shapes(CONFIG))
FUSED = "layers.0.qkv"
QKV = ("layers.0.q.weight", "layers.0.k.weight", "layers.0.v.weight")


def fused_table() -> dict[str, WeightRef]:
    """q, k and v are rows of one tensor, everything else is as it is."""
    table = {name: WeightRef(tensor=name) for name in SHAPES}
    start = 0
    for name in QKV:
        table[name] = WeightRef(tensor=FUSED, rows=(start, start + SHAPES[name][0]))
        start += SHAPES[name][0]
    return table


def fused_tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=random).to(dtype) for name, shape in SHAPES.items()}
    tensors[FUSED] = torch.cat([tensors.pop(name) for name in QKV])
    return tensors


def weights_of(folder: Path, tensors: dict[str, torch.Tensor]) -> ModelWeights:
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return ModelWeights(Checkpoint(folder), CONFIG, fused_table())


def test_rows_of_fused_tensors(tmp_path: Path) -> None:
    tensors = fused_tensors()
    weights = weights_of(tmp_path, tensors)
    joined = torch.cat([weights.read(name) for name in QKV])
    assert torch.equal(joined, tensors[FUSED])
    assert all(tuple(weights.read(name).shape) == shape for name, shape in SHAPES.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_published_type_and_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = fused_tensors(dtype)
    weights = weights_of(tmp_path, tensors)
    assert weights.read("lm_head.weight").dtype is dtype
    assert torch.equal(weights.read_f32("lm_head.weight"), tensors["lm_head.weight"].float())


def test_names_of_a_layer(tmp_path: Path) -> None:
    weights = weights_of(tmp_path, fused_tensors())
    assert weights.layer_names(0) == [name for name in SHAPES if name.startswith("layers.0.")]
    assert weights.layer_names(1) == []


def test_weights_saved_as_parameters(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    content = {name: torch.nn.Parameter(tensor) for name, tensor in fused_tensors().items()}
    torch.save(content, tmp_path / "pytorch_model.bin")
    weights = ModelWeights(Checkpoint(tmp_path), CONFIG, fused_table())
    assert len(weights.digest(list(SHAPES))) == 64


class TestDigest:
    def test_is_of_the_content_not_of_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        first = weights_of(tmp_path / "a", fused_tensors())
        second = weights_of(tmp_path / "b", fused_tensors() | {"unused": torch.ones(1)})
        assert first.digest(list(SHAPES)) == second.digest(list(SHAPES))

    def test_changes_with_numbers_types_and_names(self, tmp_path: Path) -> None:
        names = ["final_norm.weight", "lm_head.weight"]
        changed = fused_tensors()
        changed["lm_head.weight"][0, 0] += 1
        digests = []
        for number, tensors in enumerate((fused_tensors(), changed, fused_tensors(torch.bfloat16))):
            (tmp_path / str(number)).mkdir()
            digests.append(weights_of(tmp_path / str(number), tensors).digest(names))
        digests.append(weights_of(tmp_path / "0", fused_tensors()).digest(names[:1]))
        assert len(set(digests)) == 4


class TestRefused:
    def test_missing_tensor(self, tmp_path: Path) -> None:
        tensors = fused_tensors()
        del tensors[FUSED], tensors["lm_head.weight"]
        with pytest.raises(CheckpointError, match=rf"lacks 2 tensors that the model needs, first '{FUSED}'"):
            weights_of(tmp_path, tensors)

    def test_table_with_a_gap_is_the_plugins_fault(self, tmp_path: Path) -> None:
        weights = weights_of(tmp_path, fused_tensors())
        table = fused_table()
        del table["final_norm.weight"]
        with pytest.raises(PluginError, match=r"weight table lacks 'final_norm\.weight'"):
            ModelWeights(weights.checkpoint, CONFIG, table)

    @pytest.mark.parametrize("shape", [(32,), (101, 31), (31, 101), (1, 101, 32), ()])
    def test_wrong_shape(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        weights = weights_of(tmp_path, fused_tensors() | {"lm_head.weight": torch.ones(shape)})
        with pytest.raises(CheckpointError, match=r"'lm_head\.weight' .*has the shape .* asks for \[101, 32\]"):
            weights.read("lm_head.weight")

    @pytest.mark.parametrize("rows", [40, 63, 65, 96])
    def test_fused_tensor_of_another_size(self, tmp_path: Path, rows: int) -> None:
        """With too many rows every part has its shape, and yet k and v would be rows of something else."""
        weights = weights_of(tmp_path, fused_tensors() | {FUSED: torch.ones(rows, 32)})
        for name in QKV:
            with pytest.raises(CheckpointError, match=rf"has {rows} rows, but {name} and its like need 64"):
                weights.read(name)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_numbers_that_are_none(self, tmp_path: Path, value: float, dtype: torch.dtype) -> None:
        tensors = fused_tensors(dtype)
        tensors["layers.0.down.weight"][-1, -1] = value
        weights = weights_of(tmp_path, tensors)
        with pytest.raises(CheckpointError, match=r"layers\.0\.down\.weight.* not finite"):
            weights.read("layers.0.down.weight")
        weights.read("lm_head.weight")

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
    def test_quantized_weights(self, tmp_path: Path, dtype: torch.dtype) -> None:
        weights = weights_of(tmp_path, fused_tensors() | {"lm_head.weight": torch.ones(101, 32, dtype=dtype)})
        with pytest.raises(CheckpointError, match=rf"holds {dtype}, not floating point.*Quantized checkpoints"):
            weights.read("lm_head.weight")

    def test_scalar_where_rows_are_needed(self, tmp_path: Path) -> None:
        weights = weights_of(tmp_path, fused_tensors() | {FUSED: torch.tensor(1.0)})
        with pytest.raises(CheckpointError, match="rows"):
            weights.read("layers.0.q.weight")
