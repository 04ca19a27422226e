"""Bundles of the tiny decoder, made in a moment, for backends to be tested on."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tpudeploy.compile.toolchain import Toolchain, run_tool
from tpudeploy.contracts.bundle import BundleFile, BundleFormat, CompilerInfo, Manifest
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import NetSet
from tpudeploy.contracts.quant import QuantMode, QuantScheme, resolve_quant
from tpudeploy.testing.tiny_decoder import CHIP_PLAN, TinyDecoder, tiny_nets, tiny_weight_slices


def onnx_bundle(folder: Path, decoder: TinyDecoder, mode: QuantMode, half: DType = DType.F16) -> Manifest:
    """Write an ONNX bundle of ``decoder`` into an existing folder. Needs the package onnx."""
    from tpudeploy.compile.cpu_nets import write_cpu_nets
    from tpudeploy.graph.onnx_decoder import build_graph

    quant = resolve_quant(mode, half)
    nets = tiny_nets(DType.F32)
    files: dict[str, str] = {}
    for stem, names in tiny_weight_slices(nets).items():
        graphs = [(nets.net(name), build_graph(decoder.config, nets.net(name), nets.seq_length)) for name in names]
        arrays, scheme = decoder.weights[stem].items(), quant.of_kind(nets.net(names[0]).kind)
        files |= write_cpu_nets(folder, graphs, arrays, scheme, weights_name=f"{stem}.bin")
    return tiny_manifest(folder, BundleFormat.ONNX, nets, quant, files)


def bmodel_bundle(folder: Path, decoder: TinyDecoder, mode: QuantMode, toolchain: Toolchain) -> Manifest:
    """Compile a bundle of ``decoder`` for one chip into an existing folder; takes seconds a net.

    :raises TpuDeployError: one of the vendor's tools failed.
    """
    from tpudeploy.graph.onnx_builder import save_onnx
    from tpudeploy.graph.onnx_decoder import build_graph
    from tpudeploy.graph.weight_file import write_weight_file

    quant = resolve_quant(mode, DType.BF16 if mode is QuantMode.BF16 else DType.F16)
    nets = tiny_nets(quant.activation, CHIP_PLAN)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tools = _Tools(toolchain, work)
        for stem, names in tiny_weight_slices(nets).items():
            stored = write_weight_file(work / f"{stem}.npz", decoder.weights[stem].items())
            for net in (nets.net(name) for name in names):
                graph = build_graph(decoder.config, net, nets.seq_length)
                model = graph.model(net.inputs, net.outputs, location=stored.name, entries=stored.entries)
                save_onnx(model, work / f"{net.name}.onnx")
                tools.compile(net.name, quant.of_kind(net.kind))
        tools.run("model_tool", "--combine", *(f"{net.name}.bmodel" for net in nets.nets), "-o", "model.bmodel")
        shutil.copyfile(work / "model.bmodel", folder / "model.bmodel")
    return tiny_manifest(folder, BundleFormat.BMODEL, nets, quant, {net.name: "model.bmodel" for net in nets.nets})


@dataclass(frozen=True)
class _Tools:
    """The vendor's tools, called in one folder."""

    toolchain: Toolchain
    folder: Path

    def run(self, tool: str, *arguments: str) -> None:
        run_tool(self.toolchain, tool, arguments, cwd=self.folder, log=self.folder / "log.txt")

    def compile(self, name: str, quant: QuantScheme) -> None:
        """``NAME.onnx`` -> ``NAME.bmodel``."""
        self.run("model_transform", "--model_name", name, "--model_def", f"{name}.onnx", "--mlir", f"{name}.mlir")
        options = ["--quantize", quant.vendor_name, "--quant_input", "--quant_output", "--chip", "bm1684x"]
        group = ["--q_group_size", str(quant.group_size)] if quant.group_size else []
        self.run("model_deploy", "--mlir", f"{name}.mlir", *options, *group, "--model", f"{name}.bmodel")


def tiny_manifest(
    folder: Path, form: BundleFormat, nets: NetSet, quant: QuantScheme, net_files: dict[str, str]
) -> Manifest:
    """The manifest of a bundle whose files lie in ``folder``."""
    files = tuple(
        BundleFile(
            path=path.relative_to(folder).as_posix(),
            size_bytes=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )
    return Manifest(
        model="tiny",
        variant="",
        checkpoint_digest="0" * 64,
        format=form,
        quant=quant,
        nets=nets,
        net_files=net_files,
        compiler=CompilerInfo(name="test", version="0"),
        tpudeploy_version="0",
        files=files,
    )
