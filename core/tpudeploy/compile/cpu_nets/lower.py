"""Weights as a quantization scheme stores them, and the ONNX nodes that read them so.

A weight is *linear* where matmuls alone read it, a *table* where rows are looked up in it, and *plain* otherwise. What
is stored in 16 bits is read through a ``Cast``: before a table's rows are used, and once, at load, for all else.

Linear weights in integers are read by ``MatMulNBits``, onnxruntime's matmul over packed integers. Of its kernels only
the one for 4 bits takes activations as they are; that for 8 bits rounds them to 8 bits too, which the chip does not.
So 8 bits are stored as two halves of 4, side by side along the inputs: with q = 16 h + l and z = 16 u + v,

    x . s (q - z)  =  [x, x] . [16 s (h - u), s (l - v)]

which is exact, takes the same memory, and was eleven times as fast for one token as onnxruntime's faithful 8-bit path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum

import numpy as np
import onnx
from onnx import TensorProto, helper

from tpudeploy.compile.cpu_nets.quantize import pack_nibbles, quantize
from tpudeploy.compile.cpu_nets.stored import StoredArray, StoredWeights
from tpudeploy.contracts.dtypes import Array, DType, to_storage
from tpudeploy.contracts.quant import QuantScheme
from tpudeploy.errors import CompileError

_ONNX_TYPES = {
    DType.F32: TensorProto.FLOAT,
    DType.F16: TensorProto.FLOAT16,
    DType.BF16: TensorProto.BFLOAT16,
    DType.U8: TensorProto.UINT8,
}
_CONTRIB = "com.microsoft"
_FLOAT_ACTIVATIONS = 1
"""MatMulNBits' accuracy level for activations in float32."""
_KERNEL_BITS = 4
_ELEMENTS_AT_ONCE = 1 << 22


class Role(Enum):
    """How nets read a weight."""

    LINEAR = "linear"
    TABLE = "table"
    PLAIN = "plain"


def weight_roles(models: Iterable[onnx.ModelProto]) -> dict[str, Role]:
    """The role of every external weight."""
    uses: dict[str, set[Role]] = {}
    for model in models:
        external = {tensor.name for tensor in model.graph.initializer if _is_external(tensor)}
        for node in model.graph.node:
            for position, name in enumerate(node.input):
                if name in external:
                    uses.setdefault(name, set()).add(_use(node.op_type, position))
    return {name: roles.pop() if len(roles) == 1 else Role.PLAIN for name, roles in uses.items()}


def _use(operator: str, position: int) -> Role:
    match operator, position:
        case "MatMul", 1:
            return Role.LINEAR
        case "Gather", 0:
            return Role.TABLE
        case _:
            return Role.PLAIN


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def stored_type(quant: QuantScheme) -> DType:
    """The type in which a scheme stores the numbers that it does not quantize."""
    return quant.activation if quant.weight_bits < 32 else DType.F32


def store_weight(stored: StoredWeights, name: str, array: Array, role: Role, quant: QuantScheme) -> None:
    """Write one weight as the scheme has it.

    :param array: float32; (in, out) where it is linear.
    :raises CompileError: numbers that are too large for the type, or a shape that cannot be quantized.
    """
    if role is Role.LINEAR and quant.group_size:
        _store_integers(stored, name, array, quant)
        return
    dtype = stored_type(quant)
    stored.add(name, dtype, array.shape, (_converted(name, part, dtype) for part in _pieces(array)))


def _pieces(array: Array) -> Iterator[Array]:
    step = max(1, _ELEMENTS_AT_ONCE * len(array) // max(1, array.size))
    return (array[start : start + step] for start in range(0, len(array), step))


def _converted(name: str, part: Array, dtype: DType) -> Array:
    with np.errstate(over="ignore"):
        converted = to_storage(part, dtype)
    if dtype is DType.F16 and not np.isfinite(converted).all():
        raise CompileError(f"{name} has numbers that F16 cannot hold.", hint="Choose --quant bf16.")
    return converted


def _store_integers(stored: StoredWeights, name: str, array: Array, quant: QuantScheme) -> None:
    size_in, size_out = array.shape
    if size_in % quant.group_size:
        raise CompileError(
            f"{name} has {size_in} inputs, which cannot be quantized in groups of {quant.group_size}.",
            hint="Choose --quant f16 or bf16.",
        )
    scales: list[Array] = []
    zeros: list[Array] = []

    def values() -> Iterator[Array]:
        step = max(1, _ELEMENTS_AT_ONCE // size_in)
        for start in range(0, size_out, step):
            part = quantize(array[:, start : start + step].T, quant.weight_bits, quant.group_size)
            scales.append(_converted(name, part.scales, quant.activation))
            zeros.append(pack_nibbles(_nibbles(part.zero_points, quant)))
            yield pack_nibbles(_nibbles(part.values, quant))

    groups = _kernel_inputs(size_in, quant) // quant.group_size
    stored.add(f"{name}.values", DType.U8, (size_out, groups, quant.group_size // 2), values())
    stored.add(f"{name}.scales", quant.activation, (size_out, size_in // quant.group_size), scales)
    stored.add(f"{name}.zeros", DType.U8, (size_out, (groups + 1) // 2), zeros)


def _nibbles(values: Array, quant: QuantScheme) -> Array:
    """uint8 (out, n) -> values below 16: (out, n), or for 8 bits (out, 2 n), high halves first."""
    if quant.weight_bits == _KERNEL_BITS:
        return values
    return np.concatenate((values >> 4, values & 15), axis=1)


def _kernel_inputs(size_in: int, quant: QuantScheme) -> int:
    return size_in * quant.weight_bits // _KERNEL_BITS


class Lowering:
    """Rewrites one model so that it reads its weights as they were stored.

    :param location: the weight file's name, relative to the folder of the model.
    """

    def __init__(self, roles: dict[str, Role], stored: StoredWeights, quant: QuantScheme, location: str) -> None:
        self._roles = roles
        self._stored = stored.arrays
        self._quant = quant
        self._location = location

    def apply(self, model: onnx.ModelProto) -> None:
        """Rewrite ``model`` in place."""
        graph = model.graph
        self._nodes: list[onnx.NodeProto] = []
        self._initializers = {t.name: t for t in graph.initializer if not _is_external(t)}
        self._doubled: set[str] = set()
        weights = [tensor.name for tensor in graph.initializer if _is_external(tensor)]
        for name in weights:
            if not self._read_apart(name):
                self._read(name)
        for node in graph.node:
            self._lower(node)
        for field, values in (("node", self._nodes), ("initializer", self._initializers.values())):
            graph.ClearField(field)
            getattr(graph, field).extend(values)
        if self._quant.group_size:
            model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))

    def _read_apart(self, name: str) -> bool:
        """Whether the nodes that use a weight, not one Cast before them all, bring it to float32."""
        role = self._roles[name]
        return role is Role.TABLE or (role is Role.LINEAR and bool(self._quant.group_size))

    def _read(self, name: str) -> None:
        """Make the float32 tensor ``name`` of what is stored under that name."""
        array = self._stored[name]
        if array.dtype is DType.F32:
            self._external(name, name)
            return
        self._external(name, f"{name}.stored")
        self._node("Cast", [f"{name}.stored"], name, to=TensorProto.FLOAT)

    def _lower(self, node: onnx.NodeProto) -> None:
        apart = next((name for name in node.input if name in self._roles and self._read_apart(name)), None)
        if apart is None:
            self._nodes.append(node)
        elif self._roles[apart] is Role.TABLE:
            self._lower_lookup(node, apart)
        else:
            self._lower_matmul(node, apart)

    def _lower_lookup(self, node: onnx.NodeProto, table: str) -> None:
        self._external(table, table)
        self._nodes.append(node)
        if self._stored[table].dtype is not DType.F32:
            (output,) = node.output
            node.output[0] = f"{output}.stored"
            self._node("Cast", [f"{output}.stored"], output, to=TensorProto.FLOAT)

    def _lower_matmul(self, node: onnx.NodeProto, weight: str) -> None:
        values, scales = self._stored[f"{weight}.values"], self._stored[f"{weight}.scales"]
        size_out, groups, _ = values.shape
        for part in ("values", "zeros"):
            self._external(f"{weight}.{part}", f"{weight}.{part}")
        states = node.input[0]
        scale_name = f"{weight}.scales"
        self._read(scale_name)
        if groups != scales.shape[1]:
            states, scale_name = self._twice(states), self._two_scales(scale_name)
        self._nodes.append(
            helper.make_node(
                "MatMulNBits",
                [states, f"{weight}.values", scale_name, f"{weight}.zeros"],
                list(node.output),
                name=node.name,
                domain=_CONTRIB,
                K=groups * self._quant.group_size,
                N=size_out,
                bits=_KERNEL_BITS,
                block_size=self._quant.group_size,
                accuracy_level=_FLOAT_ACTIVATIONS,
            )
        )

    def _twice(self, states: str) -> str:
        """(..., in) -> (..., 2 in): the states beside themselves."""
        doubled = f"{states}.twice"
        if doubled not in self._doubled:
            self._doubled.add(doubled)
            self._node("Concat", [states, states], doubled, axis=-1)
        return doubled

    def _two_scales(self, scales: str) -> str:
        """(out, groups) -> (out, 2 groups): the scales of the high and of the low halves; folded at load."""
        sixteen = "scales.sixteen"
        self._initializers[sixteen] = onnx.numpy_helper.from_array(np.array(16, dtype=np.float32), sixteen)
        self._node("Mul", [scales, sixteen], f"{scales}.high")
        self._node("Concat", [f"{scales}.high", scales], f"{scales}.both", axis=1)
        return f"{scales}.both"

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: int) -> None:
        self._nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}.{kind}", **attributes))

    def _external(self, array: str, tensor: str) -> None:
        """Let the initializer ``tensor`` be what is stored as ``array``."""
        self._initializers[tensor] = _external_tensor(tensor, self._stored[array], self._location)


def _external_tensor(name: str, array: StoredArray, location: str) -> onnx.TensorProto:
    tensor = TensorProto(
        name=name, data_type=_ONNX_TYPES[array.dtype], dims=array.shape, data_location=TensorProto.EXTERNAL
    )
    place = {"location": location, "offset": array.offset_bytes, "length": array.length_bytes}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor
