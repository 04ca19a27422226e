"""A small builder for ONNX graphs whose weights lie in a file beside them.

A graph names its weights and their shapes; the numbers are attached later, as external data, so that a net of any
width is written in milliseconds and every layer shares one description.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tpudeploy.contracts.dtypes import Array, DType
from tpudeploy.contracts.net import TensorSpec

OPSET = 17
"""The newest opset whose operators both the compiler's converter and old onnxruntime releases know."""
IR_VERSION = 8

ONNX_TYPES = {DType.F32: TensorProto.FLOAT, DType.F16: TensorProto.FLOAT16, DType.I32: TensorProto.INT32}


class OnnxBuilder:
    """Collects nodes, small constants and the names of large weights."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.weights: dict[str, tuple[int, ...]] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._taken: set[str] = set()

    def op(self, kind: str, *inputs: str, name: str, **attributes: object) -> str:
        """Add a node with one output, which bears its ``name``; returns that name."""
        self._take(name)
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def _take(self, name: str) -> None:
        if name in self._taken:
            raise ValueError(f"the tensor {name!r} exists already")
        self._taken.add(name)

    def ints(self, *values: int) -> str:
        """A constant of int64 numbers, for shapes and axes; equal ones are one."""
        return self._constant("i_" + "_".join(str(value) for value in values), np.array(values, dtype=np.int64))

    def number(self, value: float) -> str:
        """A scalar float32 constant; equal ones are one."""
        return self._constant(f"f_{value!r}", np.array(value, dtype=np.float32))

    def _constant(self, name: str, array: Array) -> str:
        if name not in self._constants:
            self._constants[name] = onnx.numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, *shape: int) -> str:
        """A float32 weight that is attached later; returns its name."""
        if self.weights.setdefault(name, shape) != shape:
            raise ValueError(f"weight {name} has two shapes: {self.weights[name]} and {shape}")
        return name

    def nodes_digest(self) -> str:
        """SHA-256 (hex) of nodes, constants and weight shapes: what a compiled template depends on."""
        sha = hashlib.sha256()
        for message in (*self._nodes, *self._constants.values()):
            sha.update(message.SerializeToString(deterministic=True))
        sha.update(repr(sorted(self.weights.items())).encode())
        return sha.hexdigest()

    def model(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        location: str,
        entries: Mapping[str, tuple[int, int]],
    ) -> onnx.ModelProto:
        """The finished model.

        :param location: the weight file's name, relative to the folder of the model.
        :param entries: weight name -> (offset, length) in bytes within that file.
        """
        initializers = list(self._constants.values())
        for name, shape in self.weights.items():
            initializers.append(_external(name, shape, location, *entries[name]))
        return self._finish([_value(s) for s in inputs], outputs, initializers)

    def model_with_inputs(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> onnx.ModelProto:
        """The same nodes with the weights as further inputs: for a run over arrays that are in memory."""
        weights = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(s)) for name, s in self.weights.items()]
        return self._finish([*(_value(s) for s in inputs), *weights], outputs, list(self._constants.values()))

    def _finish(
        self, inputs: list[onnx.ValueInfoProto], outputs: Sequence[TensorSpec], initializers: list[onnx.TensorProto]
    ) -> onnx.ModelProto:
        graph = helper.make_graph(self._nodes, self.name, inputs, [_value(s) for s in outputs], initializers)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="tpudeploy",
        )


def _external(name: str, shape: Sequence[int], location: str, offset: int, length: int) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    # Floating point stays float32 in ONNX; the compiler or the CPU quantizer chooses what the backend sees.
    kind = TensorProto.FLOAT if spec.dtype.is_float else ONNX_TYPES[spec.dtype]
    return helper.make_tensor_value_info(spec.name, kind, list(spec.shape))


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a model whose weights are external."""
    path.write_bytes(model.SerializeToString(deterministic=True))
