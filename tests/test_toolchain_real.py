"""With the real TPU-MLIR: the launcher's savings change no byte, every mode compiles, errors are readable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tpudeploy.compile import toolchain
from tpudeploy.compile.toolchain import Toolchain, run_tool
from tpudeploy.compile.toolchain.model import LAUNCHER
from tpudeploy.compile.toolchain.run import run_logged
from tpudeploy.errors import CompileError
from tpudeploy.settings import load_settings

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.toolchain

HIDDEN, TOKENS, HEADS = 256, 32, 8
HEAD = HIDDEN // HEADS
MODES = ("F16", "BF16", "W8F16", "W8BF16", "W4F16", "W4BF16")


class Net:
    """A small attention layer, written node by node."""

    def __init__(self, *, transposed: bool = False) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.random = np.random.default_rng(0)
        self.transposed = transposed
        q, k, v = (self.heads(self.linear("x", name)) for name in ("q", "k", "v"))
        # As rotary embeddings do, this keeps the compiler from taking the projections for a part of the attention.
        q, k = (self.add("Mul", [x, self.constant(np.linspace(0.5, 1, HEAD, dtype=np.float32))]) for x in (q, k))
        scores = self.add("MatMul", [q, self.add("Transpose", [k], perm=[0, 1, 3, 2])])
        scores = self.add("Div", [scores, self.constant(np.float32(HEAD**0.5))])
        # What torch writes for expand(): constants computed from constants, for the tool to fold.
        ones = self.add("ConstantOfShape", [self.constant(np.array([4]))], value=_tensor(np.array([1])))
        shape = self.add("Mul", [ones, self.constant(np.array([1, 1, TOKENS, TOKENS]))])
        mask = self.add("Expand", ["mask", shape])
        scores = self.add("Softmax", [self.add("Add", [scores, mask])], axis=-1)
        mixed = self.add("Transpose", [self.add("MatMul", [scores, v])], perm=[0, 2, 1, 3])
        flat = self.add("Reshape", [mixed, self.constant(np.array([1, TOKENS, HIDDEN]))])
        self.add("Add", ["x", self.linear(flat, "o")], output="y")

    def add(self, kind: str, inputs: list[str], *, output: str = "", **attributes: object) -> str:
        name = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def constant(self, value: Any) -> str:
        return self.add("Constant", [], value=_tensor(np.asarray(value)))

    def linear(self, x: str, name: str) -> str:
        weight = self.random.standard_normal((HIDDEN, HIDDEN)).astype(np.float32) * np.float32(0.05)
        self.weights.append(onnx.numpy_helper.from_array(weight, name))
        operand = self.add("Transpose", [name], perm=[1, 0]) if self.transposed else name
        return self.add("MatMul", [x, operand])

    def heads(self, x: str) -> str:
        split = self.add("Reshape", [x, self.constant(np.array([1, TOKENS, HEADS, HEAD]))])
        return self.add("Transpose", [split], perm=[0, 2, 1, 3])

    def save(self, path: Path, *, external: bool = False) -> None:
        info = onnx.helper.make_tensor_value_info
        f32 = onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            self.nodes,
            "net",
            [info("x", f32, (1, TOKENS, HIDDEN)), info("mask", f32, (1, 1, 1, TOKENS))],
            [info("y", f32, (1, TOKENS, HIDDEN))],
            self.weights,
        )
        opset = [onnx.helper.make_opsetid("", 15)]
        model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
        onnx.save(model, str(path), save_as_external_data=external, location="net.bin", size_threshold=1024)


def _tensor(value: np.ndarray[Any, Any]) -> Any:
    return onnx.numpy_helper.from_array(value, "value")


def transform(made: Toolchain, folder: Path, *, plain: bool = False) -> None:
    command = made.command("model_transform", "--model_name", "net", "--model_def", "net.onnx", "--mlir", "net.mlir")
    if plain:
        command.insert(command.index(str(LAUNCHER)) + 1, "--plain")
    run_logged(command, cwd=folder, log=folder / "transform.log", env=made.environment(), timeout_s=300)
    assert "as published" not in (folder / "transform.log").read_text()


def deploy(made: Toolchain, folder: Path, mode: str, model: str, *options: str) -> None:
    arguments = ["--mlir", "net.mlir", "--quantize", mode, "--chip", "bm1684x", "--model", model, *options]
    run_tool(made, "model_deploy", arguments, cwd=folder, log=folder / "deploy.log", timeout_s=300)


@pytest.mark.parametrize(
    ("external", "transposed"), [(False, False), (True, False), (False, True)], ids=["inline", "external", "folded"]
)
def test_weights_on_disk_change_no_byte(
    external: bool, transposed: bool, installed_toolchain: Toolchain, tmp_path: Path
) -> None:
    results = []
    for plain in (True, False):
        folder = tmp_path / ("plain" if plain else "lite")
        folder.mkdir()
        Net(transposed=transposed).save(folder / "net.onnx", external=external)
        transform(installed_toolchain, folder, plain=plain)
        results.append([(folder / name).read_bytes() for name in ("net.mlir", "net_top_f32_all_weight.npz")])
    assert results[0] == results[1]


def test_the_simulator_computes_what_the_net_says(installed_toolchain: Toolchain, tmp_path: Path) -> None:
    """Prefill attention too, on which the compiler crashes in an incomplete environment."""
    runtime = pytest.importorskip("onnxruntime")
    Net().save(tmp_path / "net.onnx")
    random = np.random.default_rng(1)
    mask = np.where(np.arange(TOKENS) < 20, 0, -10000).astype(np.float32).reshape(1, 1, 1, TOKENS)
    feed = {"x": random.standard_normal((1, TOKENS, HIDDEN)).astype(np.float32), "mask": mask}
    np.savez(tmp_path / "in.npz", **feed)
    transform(installed_toolchain, tmp_path)
    deploy(installed_toolchain, tmp_path, "F16", "net.bmodel")
    arguments = ["--input", "in.npz", "--model", "net.bmodel", "--output", "out.npz"]
    run_tool(installed_toolchain, "model_runner", arguments, cwd=tmp_path, log=tmp_path / "run.log", timeout_s=300)
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, feed)
    with np.load(tmp_path / "out.npz") as outputs:
        (name,) = outputs.files
        np.testing.assert_allclose(outputs[name], expected, atol=0.02)


def test_every_mode_compiles_and_pieces_combine(installed_toolchain: Toolchain, tmp_path: Path) -> None:
    Net().save(tmp_path / "net.onnx")
    transform(installed_toolchain, tmp_path)
    for mode in MODES:
        deploy(installed_toolchain, tmp_path, mode, f"{mode}.bmodel", "--quant_input", "--quant_output")
    sizes = {mode: (tmp_path / f"{mode}.bmodel").stat().st_size for mode in MODES}
    assert sizes["F16"] > sizes["W8F16"] > sizes["W4F16"]
    log = tmp_path / "info.log"
    run_tool(installed_toolchain, "model_tool", ["--info", "W4F16.bmodel"], cwd=tmp_path, log=log)
    assert "BM1684X" in log.read_text()


def test_a_graph_that_cannot_be_compiled_is_explained(installed_toolchain: Toolchain, tmp_path: Path) -> None:
    net = Net()
    net.nodes[-1].op_type = "Bernoulli"
    del net.nodes[-1].input[1]
    net.save(tmp_path / "net.onnx")
    with pytest.raises(CompileError, match=r"Op not support:\{'Bernoulli'\}") as raised:
        transform(installed_toolchain, tmp_path)
    assert raised.value.message.startswith("model_transform failed (exit code 1).")
    assert len(raised.value.message.splitlines()) < 25


def test_the_self_check_passes(installed_toolchain: Toolchain) -> None:
    settings = load_settings()
    assert toolchain.find_toolchain(settings) == installed_toolchain
    result = toolchain.check(settings)
    assert result.passed, result.detail
    assert toolchain.status(settings).problems == []
