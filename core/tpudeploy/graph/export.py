"""Write the slices of a model as ONNX, one slice in memory at a time, and check each against the torch reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tpudeploy.checkpoint.weights import ModelWeights
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.net import NetSpec
from tpudeploy.contracts.slices import ModelExport, Slice, SliceCheck
from tpudeploy.errors import CompileError
from tpudeploy.graph.case_inputs import SliceCase
from tpudeploy.graph.onnx_builder import OnnxBuilder, save_onnx
from tpudeploy.graph.onnx_decoder import build_graph
from tpudeploy.graph.shard_weights import shard_config
from tpudeploy.graph.slice_check import reference_cases
from tpudeploy.graph.slice_weights import slice_arrays
from tpudeploy.graph.weight_file import WeightFile, contiguous, write_weight_file


def net_graphs(part: Slice, export: ModelExport) -> list[tuple[NetSpec, OnnxBuilder]]:
    """The graphs of a slice's nets, without weights."""
    config = shard_config(part, export.config)
    return [(net, build_graph(config, net, export.seq_length)) for net in part.nets]


def write_slice_weights(part: Slice, weights: ModelWeights, export: ModelExport, folder: Path) -> WeightFile:
    """Write ``NAME.npz``, which all nets of the slice share."""
    arrays = slice_arrays(part, weights, export.config, export.seq_length)
    return write_weight_file(folder / f"{part.name}.npz", arrays)


def write_slice_graphs(part: Slice, export: ModelExport, weight_file: WeightFile, folder: Path) -> list[Path]:
    """Write one ``NET.onnx`` a net beside its weight file."""
    paths = []
    for net, graph in net_graphs(part, export):
        path = folder / f"{net.name}.onnx"
        model = graph.model(net.inputs, net.outputs, location=weight_file.name, entries=weight_file.entries)
        save_onnx(model, path)
        paths.append(path)
    return paths


def check_slice(part: Slice, weights: ModelWeights, export: ModelExport, folder: Path) -> list[SliceCheck]:
    """Run every ONNX net of a slice beside the torch reference in its published form.

    :raises CompileError: a net is further from the reference than the adapter's tolerance.
    """
    cases = reference_cases(part, weights, export.config)
    return [_check(case, _run_onnx(str(folder / f"{case.net.name}.onnx"), case, {}), export) for case in cases]


def check_arrays(
    part: Slice, weights: ModelWeights, export: ModelExport, arrays: Mapping[str, Array]
) -> list[SliceCheck]:
    """The same of a slice whose weights are in memory: nothing is written.

    :param arrays: what ``slice_arrays`` gives.
    :raises CompileError: a net is further from the reference than the adapter's tolerance.
    """
    graphs = {net.name: graph for net, graph in net_graphs(part, export)}
    ready = {name: contiguous(array) for name, array in arrays.items()}
    checks = []
    for case in reference_cases(part, weights, export.config):
        graph = graphs[case.net.name]
        model = graph.model_with_inputs(case.net.inputs, case.net.outputs)
        given = {name: ready[name] for name in graph.weights}
        checks.append(_check(case, _run_onnx(model.SerializeToString(), case, given), export))
    return checks


def _check(case: SliceCase, outputs: Sequence[Array], export: ModelExport) -> SliceCheck:
    check = _compare(case, outputs)
    if not (check.max_error <= export.tolerance.absolute and check.cosine >= export.tolerance.cosine):
        raise CompileError(
            f"the exported net {check.net} differs from the torch reference: error {check.max_error:.3g} "
            f"(allowed {export.tolerance.absolute:.3g}), cosine {check.cosine:.7f} "
            f"(at least {export.tolerance.cosine}).",
            hint="This is a defect of the adapter or of tpudeploy: please report it with config.json.",
        )
    return check


def _run_onnx(model: str | bytes, case: SliceCase, weights: dict[str, Array]) -> Sequence[Array]:
    """Run a net once.

    :param model: its path, or itself.
    :param weights: those that are inputs, where none lie beside it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Packing copies every weight; a net that runs once is better off without.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs: Sequence[Array] = session.run([spec.name for spec in case.net.outputs], case.inputs | weights)
    return outputs


def _compare(case: SliceCase, outputs: Sequence[Array]) -> SliceCheck:
    errors, cosines = [0.0], [1.0]
    for expected, actual in zip(case.outputs, outputs, strict=True):
        error, cosine = compare(expected, actual)
        errors.append(error)
        cosines.append(cosine)
    return SliceCheck(net=case.net.name, max_error=max(errors), cosine=min(cosines))


def compare(expected: Array, actual: Array) -> tuple[float, float]:
    """Largest difference (relative to the largest magnitude where that is over one) and cosine similarity."""
    expected, actual = expected.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    norm = float(np.linalg.norm(expected) * np.linalg.norm(actual))
    cosine = float(expected @ actual) / norm if norm else float(np.array_equal(expected, actual))
    return float(np.abs(expected - actual).max(initial=0.0)) / scale, cosine
