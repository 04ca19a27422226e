"""The quantizer gives, bit for bit, what the compiler gives for the chip, however odd the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tpudeploy.compile.cpu_nets.quantize import pack_nibbles, quantize
from tpudeploy.compile.toolchain import Toolchain, run_tool
from tpudeploy.contracts.dtypes import Array, DType, to_storage
from tpudeploy.contracts.net import TensorSpec
from tpudeploy.graph.onnx_builder import OnnxBuilder, save_onnx
from tpudeploy.graph.weight_file import write_weight_file

pytestmark = pytest.mark.toolchain
SIZE_IN, SIZE_OUT, GROUP = 256, 320, 64


def difficult_weights() -> Array:
    """(in, out): random columns, and ones that are constant, of one sign, tiny, huge, or full of halves."""
    random = np.random.default_rng(1)
    weight = (random.standard_normal((SIZE_IN, SIZE_OUT)) * 0.02).astype(np.float32)
    weight[:, :3] = np.float32([0, 0.3, -0.3])
    weight[:, 3] = np.abs(weight[:, 3]) + np.float32(0.1)
    weight[:, 4] = -np.abs(weight[:, 4]) - np.float32(0.1)
    weight[:, 5:10] *= np.float32([1e-7, 1e-6, 1e-3, 1e2, 1e3])
    weight[:, 10] = random.choice(np.float32([-1, 0.5, 1]), SIZE_IN)
    weight[:, 11] = np.arange(SIZE_IN, dtype=np.float32) / 4
    weight[:, 12:40] = random.integers(-300, 301, (SIZE_IN, 28)).astype(np.float32) / 2
    return weight


@pytest.fixture(scope="module")
def transformed(tmp_path_factory: pytest.TempPathFactory, installed_toolchain: Toolchain) -> Path:
    folder = tmp_path_factory.mktemp("matmul")
    builder = OnnxBuilder("net")
    builder.op("MatMul", "x", builder.weight("w", SIZE_IN, SIZE_OUT), name="y")
    stored = write_weight_file(folder / "net.npz", [("w", difficult_weights())])
    given = [TensorSpec(name="x", shape=(1, 8, SIZE_IN), dtype=DType.F32)]
    result = [TensorSpec(name="y", shape=(1, 8, SIZE_OUT), dtype=DType.F32)]
    model = builder.model(given, result, location=stored.name, entries=stored.entries)
    save_onnx(model, folder / "net.onnx")
    arguments = ["--model_name", "net", "--model_def", "net.onnx", "--mlir", "net.mlir"]
    run_tool(installed_toolchain, "model_transform", arguments, cwd=folder, log=folder / "log")
    return folder


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("half", [DType.F16, DType.BF16], ids=lambda half: half.value)
def test_equals_the_compilers(transformed: Path, installed_toolchain: Toolchain, bits: int, half: DType) -> None:
    name = f"W{bits}{half.value.upper()}"
    options = f"weightFileName={name}.npz asymmetric=False doWinograd=False q_group_size={GROUP} q_symmetric=False"
    arguments = [
        "net.mlir",
        f"--processor-assign=chip=bm1684x mode={name} num_device=1 num_core=1 addr_mode=auto high_precision=False",
        "--processor-top-optimize",
        f"--convert-top-to-tpu={options} matmul_perchannel=False gelu_mode=normal",
        "--canonicalize",
        "--weight-fold",
        "-o",
        f"{name}.mlir",
    ]
    run_tool(installed_toolchain, "tpuc-opt", arguments, cwd=transformed, log=transformed / "log")
    found = quantize(difficult_weights().T, bits, GROUP)
    values = found.values if bits == 8 else pack_nibbles(found.values)
    with np.load(transformed / f"{name}.npz") as archive:
        wanted = {key.rsplit("_", 1)[-1]: archive[key] for key in archive.files}
    assert (values.ravel() == wanted["uint"].ravel()).all()
    assert (found.zero_points.ravel() == wanted["zp"].ravel()).all()
    assert (to_storage(found.scales, half).view(np.uint16).ravel() == wanted[half.value].ravel()).all()
