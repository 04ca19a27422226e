"""The net of the self-check: ``python tinynet.py make FOLDER`` writes it, ``... check FOLDER`` judges its result.

``make`` writes ``tiny.onnx``, its input ``in.npz`` and the expected output ``expected.npz``; ``check`` compares
``out.npz``, which the simulator wrote, and exits with 1 and a reason if the numbers are not those.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
TOKENS, HEADS, SIZE = 16, 4, 32
# The chip computes in float16, with 11 bits of mantissa; the outputs are averages of numbers around one.
TOLERANCE = 0.02


def make(folder: Path) -> None:
    """Write a small attention, its inputs and its output: it takes matmuls, and a kernel that is built on the spot."""
    random = np.random.default_rng(1684)
    width = HEADS * SIZE
    x = random.standard_normal((1, TOKENS, width)).astype(np.float32)
    mask = np.where(np.tri(TOKENS, dtype=bool), 0, -10000).astype(np.float32)[None, None]
    weights = {n: (random.standard_normal((width, width)) / width**0.5).astype(np.float32) for n in "qkv"}
    graph = helper.make_graph(
        _attention_nodes(),
        "tiny",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, mask.shape),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, TOKENS, width))],
        [
            *(numpy_helper.from_array(weight, f"{name}.weight") for name, weight in weights.items()),
            numpy_helper.from_array(np.array([1, TOKENS, HEADS, SIZE]), "by_head"),
            numpy_helper.from_array(np.array([1, TOKENS, width]), "flat"),
            numpy_helper.from_array(np.array(SIZE**-0.5, dtype=np.float32), "scale"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    onnx.save(model, str(folder / "tiny.onnx"))
    np.savez(folder / "in.npz", x=x, mask=mask)
    np.savez(folder / "expected.npz", y=_attention(x, mask, weights))


def _attention_nodes() -> list[onnx.NodeProto]:
    nodes = []
    for name, order in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
        nodes += [
            helper.make_node("MatMul", ["x", f"{name}.weight"], [f"{name}.flat"]),
            helper.make_node("Reshape", [f"{name}.flat", "by_head"], [f"{name}.heads"]),
            helper.make_node("Transpose", [f"{name}.heads"], [name], perm=order),
        ]
    return [
        *nodes,
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["context"]),
        helper.make_node("Transpose", ["context"], ["by_token"], perm=(0, 2, 1, 3)),
        helper.make_node("Reshape", ["by_token", "flat"], ["y"]),
    ]


def _attention(x: Array, mask: Array, weights: dict[str, Array]) -> Array:
    """The same in numpy: (1, tokens, width)."""
    q, k, v = ((x @ weights[n]).reshape(1, TOKENS, HEADS, SIZE).transpose(0, 2, 1, 3) for n in "qkv")
    scores = q @ k.transpose(0, 1, 3, 2) * SIZE**-0.5 + mask
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    context = (shares / shares.sum(-1, keepdims=True)) @ v
    flat: Array = context.transpose(0, 2, 1, 3).reshape(1, TOKENS, HEADS * SIZE)
    return flat


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
