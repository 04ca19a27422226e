"""The net of the self-check: ``python tinynet.py make FOLDER`` writes it, ``... check FOLDER`` judges its result.

``make`` writes ``tiny.onnx``, its input ``in.npz`` and the expected output ``expected.npz``; ``check`` compares
``out.npz``, which the simulator wrote, and exits with 1 and a reason if the numbers are not those.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROWS, INNER, COLUMNS = 8, 64, 32
# The chip computes in float16: 11 bits of mantissa, 64 products in a sum, values around 8.
TOLERANCE = 0.05


def make(folder: Path) -> None:
    """Write a small matmul with bias, its input and its output."""
    random = np.random.default_rng(1684)
    x = random.standard_normal((1, ROWS, INNER)).astype(np.float32)
    weight = random.standard_normal((INNER, COLUMNS)).astype(np.float32)
    bias = random.standard_normal(COLUMNS).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["xw"]), helper.make_node("Add", ["xw", "bias"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, ROWS, COLUMNS))],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    onnx.save(model, str(folder / "tiny.onnx"))
    np.savez(folder / "in.npz", x=x)
    np.savez(folder / "expected.npz", y=x @ weight + bias)


def check(folder: Path) -> str:
    """Compare the simulator's output with the expected one; an empty text means that they agree."""
    expected = np.load(folder / "expected.npz")["y"]
    with np.load(folder / "out.npz") as outputs:
        arrays = [outputs[name] for name in outputs.files]
    if len(arrays) != 1 or arrays[0].size != expected.size:
        return f"the simulator gave shapes {[a.shape for a in arrays]} instead of {expected.shape}"
    difference = float(np.abs(arrays[0].reshape(expected.shape) - expected).max())
    if not difference <= TOLERANCE:  # NaN is not either
        return f"the simulator's numbers are off by up to {difference:.4g} (allowed: {TOLERANCE})"
    return ""


def main(action: str, folder: Path) -> None:
    """Do one of the two; exits with 1 if the numbers are wrong."""
    if action == "make":
        make(folder)
        return
    reason = check(folder)
    if reason:
        sys.exit(reason)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
