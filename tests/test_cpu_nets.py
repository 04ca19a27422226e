"""Writing CPU nets: the quantizer against its formula, what is stored, what is shared, what is refused."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tpudeploy.compile.cpu_nets import write_cpu_nets
from tpudeploy.compile.cpu_nets.quantize import _round_half_away, pack_nibbles, quantize
from tpudeploy.contracts.dtypes import Array, DType
from tpudeploy.contracts.net import NetSpec
from tpudeploy.contracts.quant import QuantMode, QuantScheme, resolve_quant
from tpudeploy.errors import CompileError, StorageError
from tpudeploy.graph.onnx_builder import OnnxBuilder
from tpudeploy.graph.onnx_decoder import build_graph
from tpudeploy.testing.tiny_decoder import CHIP_PLAN, CONFIG, TinyDecoder, tiny_nets

INT8, INT4 = (resolve_quant(mode, DType.F16) for mode in (QuantMode.INT8, QuantMode.INT4))
NETS = tiny_nets(DType.F32)
WEIGHTS = TinyDecoder().weights


def graphs(*names: str) -> list[tuple[NetSpec, OnnxBuilder]]:
    return [(NETS.net(name), build_graph(CONFIG, NETS.net(name), NETS.seq_length)) for name in names]


def write_head(folder: Path, arrays: Iterable[tuple[str, Array]], quant: QuantScheme = INT8) -> dict[str, str]:
    return write_cpu_nets(folder, graphs("lm_head"), arrays, quant, weights_name="head.bin")


def c_round(number: float) -> int:
    return int(math.copysign(math.floor(abs(number) + 0.5), number))


class TestQuantizer:
    @pytest.mark.parametrize("bits", [8, 4])
    @settings(max_examples=60, deadline=None)
    @given(
        weight=hnp.arrays(
            np.float32, (1, 64), elements=st.floats(-2, 2, width=32) | st.integers(-8, 8).map(lambda n: n / 4)
        )
    )
    def test_follows_the_formula(self, bits: int, weight: Array) -> None:
        top = 2**bits - 1
        found = quantize(weight, bits, 64)
        spread = max(weight.max() - weight.min(), np.float32(1e-5))
        scale = np.float32(spread / np.float32(top))
        zero = min(max(-c_round(float(np.float32(weight.min() / scale))), 0), top)
        values = [min(max(c_round(float(np.float32(w / scale))) + zero, 0), top) for w in weight[0]]
        assert found.scales[0, 0] == scale
        assert found.zero_points[0, 0] == zero
        assert found.values[0].tolist() == values

    def test_groups_and_rows_are_independent(self) -> None:
        random = np.random.default_rng(0)
        weight = random.standard_normal((300, 256)).astype(np.float32)
        whole = quantize(weight, 8, 64)
        assert whole.scales.shape == (300, 4)
        part = quantize(weight[17:18, 128:192], 8, 64)
        assert (whole.values[17, 128:192] == part.values[0]).all()
        assert whole.scales[17, 2] == part.scales[0, 0]

    @pytest.mark.parametrize(("bits", "error"), [(8, 0.51), (4, 0.51)])
    def test_error_is_half_a_step(self, bits: int, error: float) -> None:
        weight = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
        values, scales, zeros = quantize(weight, bits, 64)
        groups = (values.reshape(8, 2, 64).astype(np.float32) - zeros[:, :, None]) * scales[:, :, None]
        inside = np.abs(groups - weight.reshape(8, 2, 64)) / scales[:, :, None]
        # The zero point is rounded too, so the group's extremes may be cut by half a step more.
        assert np.quantile(inside, 0.95) < error
        assert inside.max() < 2 * error

    def test_rounding_is_that_of_c(self) -> None:
        halves = np.arange(-2001, 2001, dtype=np.float32) / 2
        near = np.float32([0.49999997, -0.49999997, 1.4999999, 2.5000002, 0.0])
        numbers = np.concatenate((halves, near))
        wanted = [c_round(float(number)) for number in numbers.astype(np.float64)]
        assert _round_half_away(numbers.copy()).tolist() == wanted

    def test_nibbles(self) -> None:
        assert pack_nibbles(np.array([[1, 2, 15, 0]], dtype=np.uint8)).tolist() == [[0x21, 0x0F]]
        assert pack_nibbles(np.array([[1, 2, 3]], dtype=np.uint8)).tolist() == [[0x21, 0x03]]


class TestFiles:
    def test_nets_over_the_same_graph_are_one_model(self, tmp_path: Path) -> None:
        names = ("block_0", "block_cache_0", "block_kv_0", "block_verify_0")
        files = write_cpu_nets(tmp_path, graphs(*names), WEIGHTS["layer_000"].items(), INT8, weights_name="layer")
        assert set(files) == set(names)
        assert set(files.values()) == {"block_cache_0.onnx"}
        assert {path.name for path in tmp_path.iterdir()} == {"block_cache_0.onnx", "layer"}
        model = onnx.load(tmp_path / "block_cache_0.onnx", load_external_data=False)
        shapes = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*model.graph.input, *model.graph.output)
        }
        new, total, cache = shapes["input_states"][1], shapes["attention_mask"][3], shapes["history_k"][1]
        assert all(isinstance(symbol, str) for symbol in (new, total, cache))
        assert len({new, total, cache}) == 3
        assert shapes["present_v"] == [1, new, 2, 32]

    def test_a_net_alone_keeps_its_sizes(self, tmp_path: Path) -> None:
        files = write_cpu_nets(tmp_path, graphs("block_0"), WEIGHTS["layer_000"].items(), INT4, weights_name="w")
        model = onnx.load(tmp_path / files["block_0"], load_external_data=False)
        sizes = [d.dim_value for v in model.graph.input for d in v.type.tensor_type.shape.dim]
        assert all(sizes)
        assert "history_k" not in {value.name for value in model.graph.input}

    def test_the_same_arrays_give_the_same_bytes(self, tmp_path: Path) -> None:
        contents = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            write_head(tmp_path / name, WEIGHTS["lm_head"].items())
            contents.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
        assert contents[0] == contents[1]

    @pytest.mark.parametrize(
        ("mode", "bytes_per_weight"),
        [
            (QuantMode.NONE, 4),
            (QuantMode.F16, 2),
            (QuantMode.BF16, 2),
            (QuantMode.INT8, 1 + 3 / 64),
            (QuantMode.INT4, 0.5 + 2.5 / 64),
        ],
    )
    def test_sizes(self, tmp_path: Path, mode: QuantMode, bytes_per_weight: float) -> None:
        quant = resolve_quant(mode, DType.F16)
        write_head(tmp_path, WEIGHTS["lm_head"].items(), quant)
        weights = CONFIG.hidden_size * CONFIG.vocab_size
        norm = CONFIG.hidden_size * (4 if mode is QuantMode.NONE else 2)
        assert (tmp_path / "head.bin").stat().st_size == weights * bytes_per_weight + norm
        assert bytes_per_weight == quant.weight_bytes_per_element

    def test_embedding_stays_in_16_bits(self, tmp_path: Path) -> None:
        arrays = WEIGHTS["embedding"].items()
        write_cpu_nets(tmp_path, graphs("embedding", "embedding_cache"), arrays, INT4, weights_name="e.bin")
        assert (tmp_path / "e.bin").stat().st_size == 2 * CONFIG.vocab_size * CONFIG.hidden_size

    def test_large_weights_take_little_memory(self, tmp_path: Path) -> None:
        config = CONFIG.model_copy(update={"vocab_size": 65536, "hidden_size": 256})
        net = tiny_nets(DType.F32, CHIP_PLAN).net("lm_head")
        net = net.model_copy(
            update={
                "inputs": (net.inputs[0].model_copy(update={"shape": (1, 1, 256)}),),
                "outputs": (net.outputs[0].model_copy(update={"shape": (1, 1, 65536)}),),
            }
        )
        weight = np.ones((256, 65536), dtype=np.float32)
        arrays = [("final_norm.weight", np.ones(256, dtype=np.float32)), ("lm_head.weight", weight)]
        tracemalloc.start()
        try:
            write_cpu_nets(tmp_path, [(net, build_graph(config, net, 32))], arrays, INT8, weights_name="w")
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak_bytes < weight.nbytes * 0.7


class TestRefusals:
    def test_a_missing_weight(self, tmp_path: Path) -> None:
        with pytest.raises(CompileError, match=r"no numbers came for the weights lm_head\.weight"):
            write_head(tmp_path, [("final_norm.weight", WEIGHTS["lm_head"]["final_norm.weight"])])

    def test_an_unknown_weight(self, tmp_path: Path) -> None:
        with pytest.raises(CompileError, match=r"read another\.weight as None"):
            write_head(tmp_path, [("another.weight", np.zeros(3, dtype=np.float32))])

    def test_another_shape(self, tmp_path: Path) -> None:
        with pytest.raises(CompileError, match=r"read lm_head\.weight as \(128, 256\), but it came as \(256, 128\)"):
            write_head(tmp_path, [("lm_head.weight", WEIGHTS["lm_head"]["lm_head.weight"].T)])

    def test_a_weight_that_comes_twice(self, tmp_path: Path) -> None:
        norm = ("final_norm.weight", WEIGHTS["lm_head"]["final_norm.weight"])
        with pytest.raises(CompileError, match="final_norm"):
            write_head(tmp_path, [norm, norm])

    def test_inputs_that_make_no_whole_groups(self, tmp_path: Path) -> None:
        config = CONFIG.model_copy(update={"hidden_size": 96})
        net = NETS.net("lm_head")
        arrays = {"final_norm.weight": np.ones(96, np.float32), "lm_head.weight": np.ones((96, 256), np.float32)}
        with pytest.raises(CompileError, match="96 inputs, which cannot be quantized in groups of 64"):
            write_cpu_nets(tmp_path, [(net, build_graph(config, net, 32))], arrays.items(), INT8, weights_name="w")

    @pytest.mark.parametrize("mode", [QuantMode.F16, QuantMode.INT8])
    def test_numbers_too_large_for_f16(self, tmp_path: Path, mode: QuantMode) -> None:
        arrays = WEIGHTS["lm_head"] | {"final_norm.weight": np.full(128, 1e5, dtype=np.float32)}
        with pytest.raises(CompileError, match=r"final_norm\.weight has numbers that F16 cannot hold") as caught:
            write_head(tmp_path, arrays.items(), resolve_quant(mode, DType.F16))
        assert "bf16" in caught.value.hint
        write_head(tmp_path, arrays.items(), resolve_quant(mode, DType.BF16) if mode is QuantMode.INT8 else BF16)

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="cannot write"):
            write_head(tmp_path / "missing", WEIGHTS["lm_head"].items())

    def test_a_full_disk(self, tmp_path: Path) -> None:
        (tmp_path / "head.bin").symlink_to("/dev/full")
        with pytest.raises(StorageError, match="cannot write"):
            write_head(tmp_path, WEIGHTS["lm_head"].items(), resolve_quant(QuantMode.NONE, DType.F16))


BF16 = resolve_quant(QuantMode.BF16, DType.F16)
