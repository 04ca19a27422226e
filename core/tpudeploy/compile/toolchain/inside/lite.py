"""Make ``model_transform`` leave large weights on disk until the one moment that needs them.

As published, the tool copies the model a dozen times: it deep-copies it around constant folding, runs the whole
of it in onnxruntime to fold a handful of constants, passes it through onnxsim as one string, and saves it once
more for a comparison that nobody asked for. For one layer of 816 MB that is 8 GB and a minute.

Here the same steps run on the same graph, in the same order, with the large weights standing aside as graph
inputs; the weights join again before the MLIR is written. The resulting files are equal, byte for byte
(``tests/test_toolchain_real.py``). It is applied only to the vendor's sources it was written for.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

if TYPE_CHECKING:
    from tpudeploy.compile.toolchain.inside import skeleton
else:
    import skeleton  # a neighbour of this file: there is no tpudeploy in the environment that runs it

# SHA-256 of the vendor's files that the functions below stand in for (tpu_mlir 1.30.2).
KNOWN_SOURCES = {
    "transform/OnnxConverter.py": "84a999d352ab00e29744df42906c98ba0b902b41ef99aa408fa8f1987b81f10a",
    "transform/OnnxOpt.py": "c8146bdb39d7a22de1124689f3ad785aac1462170ada9c7ce7e1596d0545d69b",
    "tools/deploy_qat.py": "a860aa92943478182a45a6c65651778c098700ee6b763af88b6d5450d4a82dcb",
}
# With one of these options the tool needs the whole model.
NEEDS_WHOLE_MODEL = ("--test_input", "--debug", "--dynamic", "--output_names", "--onnx_sim", "--shape_influ")

Arrays = dict[str, skeleton.Array]


def applies(package_dir: Path, arguments: list[str]) -> bool:
    """Whether the vendor's sources and the request are ones that this module was written for."""
    if any(a.startswith(NEEDS_WHOLE_MODEL) for a in arguments):
        return False
    if not any(a.endswith(".onnx") for a in arguments):
        return False
    return all(
        hashlib.sha256((package_dir / "python" / name).read_bytes()).hexdigest() == digest
        for name, digest in KNOWN_SOURCES.items()
    )


def apply(package_dir: Path, arguments: list[str]) -> None:
    """Put the functions below in place of the vendor's."""
    if not applies(package_dir, arguments):
        print("tpudeploy: this model_transform runs as published, with the whole model in memory")  # noqa: T201
        return
    qat = importlib.import_module("tpu_mlir.python.tools.deploy_qat").FakeQuantNodelProcessor
    converter = importlib.import_module("transform.OnnxConverter").OnnxConverter
    optimizer = importlib.import_module("transform.OnnxOpt")
    qat.check_onnx_for_fakequant_nodes = _has_fake_quantization
    converter.load_onnx_model = _load_onnx_model
    converter.generate_mlir = _releasing(converter.generate_mlir)
    optimizer.ConstantFolding.forward_for_node_outputs = _fold_only_constants


_read: dict[str, tuple[Any, Arrays]] = {}


def _has_fake_quantization(self: Any, path: str) -> bool:
    """Stand in for ``check_onnx_for_fakequant_nodes``: the same question to the model without its weights."""
    _read[path] = skeleton.read(Path(path))
    return any(node.op_type in self.ALL_FAKEQUANTIZER for node in _read[path][0].graph.node)


def _load_onnx_model(
    self: Any,
    onnx_file: str,
    input_shapes: list[list[int]],
    _output_names: list[str],
    static_shape: bool = True,
    dump_final_opt: bool = True,
) -> None:
    """Stand in for ``OnnxConverter.load_onnx_model``, step by step."""
    self.model, weights = _read.pop(onnx_file) if onnx_file in _read else skeleton.read(Path(onnx_file))
    self.input_names = self.get_input_names(self.model)
    self.num_input = len(self.input_names)
    self.input_shape_assign(input_shapes)
    _load_folded(self, weights)
    set_aside(self.model, weights)
    self.model_simplify()
    bring_back(self.model, weights)
    self.input_shapes = self.get_input_shapes(self.model)
    self.input_types = self.get_input_types(self.model)
    self.output_types = self.get_output_types(self.model)
    for tensor in self.model.graph.initializer:
        array = weights[tensor.name] if tensor.name in weights else onnx.numpy_helper.to_array(tensor)
        self.addWeight(tensor.name, array.astype(np.float32, copy=False))
    self.get_output_name(self.model.graph)
    self.get_dynamic_op_shape(self.model)
    self.onnx_file = f"{self.model_name}_opt.onnx"
    optimizer = sys.modules["transform.OnnxOpt"]
    self.model, self.node_name_mapping = optimizer.onnx_opt(self.model, dump_final_opt)


def _load_folded(self: Any, weights: Arrays) -> None:
    """Give the large weights that constant folding will compute with their data back (and forget them)."""
    kind = sys.modules["transform.OnnxOpt"].ConstantFolding
    folding = kind.__new__(kind)  # its __init__ would check the model, which lacks data on purpose
    folding.model, folding.dynamic_shape_input_names = self.model, []
    used = {name for node in folding.get_constant_nodes() for name in node.input}
    for tensor in self.model.graph.initializer:
        if tensor.name in used & weights.keys():
            array = weights.pop(tensor.name)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def set_aside(model: Any, weights: Mapping[str, skeleton.Array]) -> None:
    """Turn the large initializers into graph inputs of the same name, type and shape."""
    for tensor in [t for t in model.graph.initializer if t.name in weights]:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        model.graph.initializer.remove(tensor)


def bring_back(model: Any, weights: Mapping[str, skeleton.Array]) -> None:
    """Undo ``set_aside``; a weight that no node reads any more is dropped, as onnxsim drops it."""
    used = {name for node in model.graph.node for name in node.input}
    for value in [v for v in model.graph.input if v.name in weights]:
        if value.name in used:
            kind = value.type.tensor_type
            tensor = model.graph.initializer.add(name=value.name, data_type=kind.elem_type)
            tensor.dims.extend(d.dim_value for d in kind.shape.dim)
        model.graph.input.remove(value)


def _fold_only_constants(self: Any, const_nodes: list[Any]) -> Mapping[str, Any]:
    """Stand in for ``ConstantFolding.forward_for_node_outputs``: run what the constants depend on, only that."""
    wanted = [output for node in const_nodes for output in node.output]
    if not wanted:
        return OrderedDict()
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel(0)
    options.log_severity_level = 3
    model = _depended_on(self.model, wanted)
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    shapes = {i.name: self.get_shape_from_value_info_proto(i) for i in model.graph.input}
    run_options = runtime.RunOptions()
    run_options.log_severity_level = 3
    values = session.run(wanted, self.generate_specific_rand_input(shapes), run_options=run_options)
    return OrderedDict(zip(wanted, values, strict=True))


def _names_read(node: Any) -> set[str]:
    """Every name that a node reads, the names that its subgraphs read included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            names.update(*(_names_read(inner) for inner in graph.node))
    return names


def _depended_on(model: Any, wanted: list[str]) -> Any:
    """The part of ``model`` that computes ``wanted``, as a model of its own."""
    needed, nodes = set(wanted), []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            nodes.append(node)
            needed |= _names_read(node)
    part = onnx.ModelProto()
    part.ir_version = model.ir_version
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = model.graph.name
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    part.graph.input.extend(i for i in model.graph.input if i.name in needed)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    return part


def _releasing(generate_mlir: Any) -> Any:
    """``generate_mlir``, after which the weights are no longer held: the tool then waits for ``tpuc-opt``."""

    def generate(self: Any, mlir_file: str) -> None:
        generate_mlir(self, mlir_file)
        self.tensors.clear()
        self.model = None

    return generate
