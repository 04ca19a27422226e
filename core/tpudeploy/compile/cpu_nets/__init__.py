"""The nets of an ONNX bundle: what ``--quant`` means on the chip, for the CPU.

==========  =========================================  ================================
mode        weights                                    computed in
==========  =========================================  ================================
none        float32                                    float32
f16, bf16   rounded to that type                       float32
int8, int4  linear layers quantized as the compiler    float32 over ``(q - zero) * scale``
            does it for the chip, bit for bit; all
            else rounded to F16 or BF16
==========  =========================================  ================================

What remains different is the rounding of activations: the chip keeps them in 16 bits, the CPU in 32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tpudeploy.compile.cpu_nets.groups import group_nets
from tpudeploy.compile.cpu_nets.lower import Lowering, Role, store_weight, weight_roles
from tpudeploy.compile.cpu_nets.stored import StoredWeights
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.net import NetSpec
from tpudeploy.contracts.quant import QuantScheme
from tpudeploy.errors import CompileError, StorageError
from tpudeploy.graph.onnx_builder import OnnxBuilder, save_onnx

__all__ = ["write_cpu_nets"]


def write_cpu_nets(
    folder: Path,
    nets: Sequence[tuple[NetSpec, OnnxBuilder]],
    arrays: Iterable[tuple[str, Array]],
    quant: QuantScheme,
    *,
    weights_name: str,
) -> dict[str, str]:
    """Write nets that share weights, holding one array in memory at a time.

    Nets that compute the same become one model with symbolic sizes.

    :param folder: an existing folder.
    :param nets: specs (floating point in float32) with what ``graph.onnx_decoder`` built for them.
    :param arrays: every weight that they read, float32; linear ones (in, out).
    :param weights_name: name of the weight file to write into ``folder``.
    :returns: net name -> path of its model, relative to ``folder``.
    :raises CompileError: a weight is missing, unknown, of another shape, or does not fit the scheme.
    :raises StorageError: the disk is full or not writable.
    """
    groups = group_nets(nets)
    roles = weight_roles(group.model for group in groups)
    shapes = {name: shape for _, builder in nets for name, shape in builder.weights.items()}
    with StoredWeights(folder / weights_name) as stored:
        _store(stored, shapes, arrays, roles, quant)
    lowering = Lowering(roles, stored, quant, weights_name)
    for group in groups:
        lowering.apply(group.model)
        path = folder / group.file_name
        try:
            save_onnx(group.model, path)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}.") from error
    return {name: group.file_name for group in groups for name in group.names}


def _store(
    stored: StoredWeights,
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Iterable[tuple[str, Array]],
    roles: Mapping[str, Role],
    quant: QuantScheme,
) -> None:
    """Write every array; ``shapes`` are those that the nets read."""
    missing = dict(shapes)
    for name, array in arrays:
        if missing.pop(name, None) != array.shape:
            raise CompileError(f"the nets read {name} as {shapes.get(name)}, but it came as {array.shape}.")
        store_weight(stored, name, array, roles[name], quant)
    if missing:
        raise CompileError(f"no numbers came for the weights {', '.join(sorted(missing))}.")
