"""Small bmodels in the layouts of others, made with the real compiler: our own graphs, with other dimensions around."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from foreign_nets import LENGTH, Vendor
from tpudeploy.compile.toolchain import Toolchain, run_tool
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import MASK_VALUE, NetKind, NetSpec, Stage
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.graph.onnx_decoder import build_graph
from tpudeploy.graph.weight_file import write_weight_file
from tpudeploy.runtime.foreign.layout import HiddenMark
from tpudeploy.testing.tiny_decoder import TinyDecoder


def compile_vendor(vendor: Vendor, decoder: TinyDecoder, toolchain: Toolchain, work: Path) -> Path:
    """Make ``vendor``'s bmodel of ``decoder`` in the folder ``work``; takes seconds a net."""
    files = []
    for number, theirs in enumerate(vendor.nets()):
        stem = f"n{number}"
        onnx.save(_Wrapped(vendor, decoder, theirs, work).model, str(work / f"{stem}.onnx"))
        _run(
            toolchain,
            work,
            "model_transform",
            "--model_name",
            theirs.name,
            "--model_def",
            f"{stem}.onnx",
            "--mlir",
            f"{stem}.mlir",
        )
        # Weights and states are in F16; what goes in and out only where that is the layout's own type.
        half = ["--quantize", "F16"] + (["--quant_input", "--quant_output"] if vendor.io is DType.F16 else [])
        options = ["--quantize", "F32"] if theirs.name == "greedy_head" else half
        if theirs.name == "lm_head" and "--quant_output" in options:
            options.remove("--quant_output")
        _run(
            toolchain,
            work,
            "model_deploy",
            "--mlir",
            f"{stem}.mlir",
            "--chip",
            "bm1684x",
            *options,
            "--model",
            f"{stem}.bmodel",
        )
        files.append(f"{stem}.bmodel")
    _run(toolchain, work, "model_tool", "--combine", *files, "-o", "model.bmodel")
    return work / "model.bmodel"


def _run(toolchain: Toolchain, work: Path, tool: str, *arguments: str) -> None:
    run_tool(toolchain, tool, arguments, cwd=work, log=work / "log.txt")


class _Wrapped:
    """One net of ours as the vendor's net of that name."""

    def __init__(self, vendor: Vendor, decoder: TinyDecoder, theirs: NetSpec, work: Path) -> None:
        self._vendor = vendor
        self._before: list[onnx.NodeProto] = []
        self._after: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        if theirs.name == "greedy_head":
            self.model = self._greedy(theirs)
            return
        ours = self._ours(decoder, theirs)
        stem = f"layer_{ours.layer:03d}" if ours.layer is not None else ours.kind.value.removesuffix("_cache")
        stored = write_weight_file(work / f"{theirs.name}-{ours.stage}.npz", decoder.weights[stem].items())
        graph = build_graph(decoder.config, ours, LENGTH)
        self.model = graph.model(ours.inputs, ours.outputs, location=stored.name, entries=stored.entries)
        self._wrap(ours, theirs)

    def _ours(self, decoder: TinyDecoder, theirs: NetSpec) -> NetSpec:
        plan = NetPlan(
            seq_length=LENGTH,
            prefill=(Stage(new_tokens=LENGTH, cache_length=0), Stage(new_tokens=1, cache_length=LENGTH)),
            verify=(),
        )
        nets = plan_nets(decoder.config, plan, DType.F32)
        if theirs.name == "lm_head":
            return nets.net("lm_head")
        tokens = theirs.inputs[0].elements
        if theirs.name.startswith("embedding"):
            kinds = (NetKind.EMBEDDING, NetKind.EMBEDDING_ONE)
            return next(net for kind in kinds for net in nets.of_kind(kind) if net.stage.new_tokens == tokens)
        layer = int(theirs.name.rsplit("_", 1)[1])
        kind = NetKind.DECODE if "cache" in theirs.name else NetKind.PREFILL_FIRST
        return next(nets.of_kind(kind, layer=layer))

    def _wrap(self, ours: NetSpec, theirs: NetSpec) -> None:
        graph = self.model.graph
        renamed = dict(self._adapt_inputs(ours, theirs))
        for node in graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
        own = {spec.name for spec in ours.outputs}
        inner = {name: f"own.{name}" for name in own}
        for node in graph.node:
            node.input[:] = [inner.get(name, name) for name in node.input]
            node.output[:] = [inner.get(name, name) for name in node.output]
        self._adapt_outputs(ours, theirs)
        nodes = [*self._before, *graph.node, *self._after]
        del graph.node[:]
        graph.node.extend(nodes)
        graph.initializer.extend(self._constants)
        self._set_ends(graph, theirs)

    def _adapt_inputs(self, ours: NetSpec, theirs: NetSpec) -> Iterator[tuple[str, str]]:
        for mine, given in zip(ours.inputs, theirs.inputs, strict=True):
            target = f"given.{mine.name}"
            yield mine.name, target
            if mine.name.startswith("history"):
                perm = [self._vendor.kv.index(letter) for letter in "bsgd"]
                self._before.append(helper.make_node("Transpose", [given.name], [target], perm=perm))
            elif mine.name == "attention_mask" and self._vendor.mark is HiddenMark.ONE:
                factor = self._constant(f"{target}.factor", np.array(MASK_VALUE, dtype=np.float32))
                self._before.append(helper.make_node("Mul", [given.name, factor], [target]))
            else:
                self._before.append(self._reshape(given.name, target, mine.shape))

    def _adapt_outputs(self, ours: NetSpec, theirs: NetSpec) -> None:
        for mine, wanted in zip(ours.outputs, theirs.outputs, strict=True):
            source = f"own.{mine.name}"
            if mine.name.startswith("present"):
                if self._vendor.slides and ours.stage.cache_length:
                    source = self._all_but_first(f"all_{mine.name[-1]}")
                perm = ["bsgd".index(letter) for letter in self._vendor.kv]
                self._after.append(helper.make_node("Transpose", [source], [wanted.name], perm=perm))
            elif wanted.dtype is DType.I32:
                self._after.append(self._reshape(source, "logits.flat", (1, mine.elements)))
                self._after.append(self._top(["logits.flat"], wanted.name))
            else:
                self._after.append(self._reshape(source, wanted.name, wanted.shape))

    def _all_but_first(self, name: str) -> str:
        bounds = [
            self._constant(f"{name}.{what}", np.array([value]))
            for what, value in (("from", 1), ("to", LENGTH + 1), ("axis", 1))
        ]
        self._after.append(helper.make_node("Slice", [name, *bounds], [f"{name}.moved"]))
        return f"{name}.moved"

    def _reshape(self, source: str, target: str, shape: tuple[int, ...]) -> onnx.NodeProto:
        return helper.make_node("Reshape", [source, self._constant(f"{target}.shape", np.array(shape))], [target])

    def _top(self, source: list[str], target: str) -> onnx.NodeProto:
        return helper.make_node(
            "TopK", [*source, self._constant(f"{target}.one", np.array([1]))], [f"{target}.value", target]
        )

    def _constant(self, name: str, array: np.ndarray) -> str:  # type: ignore[type-arg]
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def _greedy(self, theirs: NetSpec) -> onnx.ModelProto:
        node = self._top([theirs.inputs[0].name], theirs.outputs[0].name)
        graph = helper.make_graph([node], theirs.name, [], [], self._constants)
        self._set_ends(graph, theirs)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    @staticmethod
    def _set_ends(graph: onnx.GraphProto, theirs: NetSpec) -> None:
        del graph.input[:], graph.output[:]
        for spec in theirs.inputs:
            kind = TensorProto.INT32 if spec.dtype is DType.I32 else TensorProto.FLOAT
            graph.input.append(helper.make_tensor_value_info(spec.name, kind, list(spec.shape)))
        for spec in theirs.outputs:
            kind = TensorProto.INT64 if spec.dtype is DType.I32 else TensorProto.FLOAT
            graph.output.append(helper.make_tensor_value_info(spec.name, kind, list(spec.shape)))
