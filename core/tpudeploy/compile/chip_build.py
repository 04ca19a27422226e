"""Slices for the chip: each net deployed by the vendor's compiler, the nets of a slice combined at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpudeploy.checkpoint.weights import ModelWeights
from tpudeploy.compile.chip_nets import ChipCompiler
from tpudeploy.compile.plan import COMPILE_CODE, BuildPlan
from tpudeploy.compile.profile import read_profile
from tpudeploy.compile.slice_builder import (
    BuiltSlice,
    SliceBuilder,
    SliceRecord,
    read_record,
    stage_event,
    write_record,
)
from tpudeploy.compile.store import StageStore, stage_key
from tpudeploy.compile.toolchain import find_toolchain, prepare_kernels
from tpudeploy.compile.workers import Report
from tpudeploy.compile.workshop import ExportedSlice, slice_digest, temporary_export
from tpudeploy.contracts.bundle import CompilerInfo
from tpudeploy.contracts.net import NetSpec
from tpudeploy.contracts.slices import Slice
from tpudeploy.graph.export import net_graphs
from tpudeploy.graph.shard_weights import shard_config
from tpudeploy.settings import Settings

BMODEL_NAME = "model.bmodel"
_SLICE_NAME = "slice.bmodel"


@dataclass
class ChipSliceBuilder(SliceBuilder):
    """Builds slices of bmodel bundles."""

    plan: BuildPlan
    chip: ChipCompiler
    compiler: CompilerInfo

    @classmethod
    def create(cls, plan: BuildPlan, store: StageStore, settings: Settings) -> ChipSliceBuilder:
        """Find the toolchain. :raises ToolchainError: there is none, or no C compiler."""
        toolchain = find_toolchain(settings)
        prepare_kernels(toolchain)
        chip = ChipCompiler(toolchain, store, plan.scheme, settings.logs_dir / plan.title)
        return cls(plan, chip, CompilerInfo(name="tpu-mlir", version=toolchain.version))

    def prepare(self, parts: Sequence[Slice], report: Report) -> None:
        """Transform each distinct net shape once."""
        seen: set[object] = set()
        for part in parts:
            for net, graph in net_graphs(part, self.plan.export):
                shape = (net.kind, net.stage, net.part, net.inputs, net.outputs, shard_config(part, self.plan.config))
                if shape in seen:
                    continue
                seen.add(shape)
                start = time.monotonic()
                report(stage_event("transform", net.name, "started"))
                _, reused = self.chip.template(net, graph)
                report(stage_event("transform", net.name, "reused" if reused else "finished", start))

    def build(self, part: Slice, weights: ModelWeights, report: Report) -> BuiltSlice:
        """Export and check one slice, deploy its nets, combine them: their common weights are stored once."""
        digest = slice_digest(part, weights, self.plan.export)
        templates = {net.name: self.chip.template(net, graph)[0] for net, graph in net_graphs(part, self.plan.export)}
        deploys = {net.name: self.chip.deploy_key(templates[net.name], net, digest) for net in part.nets}
        key = stage_key("chip-slice", deploys, code=COMPILE_CODE)

        def produce(folder: Path) -> None:
            start = time.monotonic()
            with temporary_export(part, weights, self.plan.export, folder / "export") as exported:
                report(stage_event("export", part.name, "finished", start))
                pieces = [
                    self._deploy(deploys[net.name], net, templates[net.name], exported, report) for net in part.nets
                ]
            self.chip.combine([piece / "net.bmodel" for piece in pieces], folder / _SLICE_NAME, what=part.name)
            told = {net.name: read_profile(piece) for net, piece in zip(part.nets, pieces, strict=True)}
            profiles = {name: profile for name, profile in told.items() if profile is not None}
            names = {net.name: _SLICE_NAME for net in part.nets}
            write_record(folder, SliceRecord(net_files=names, checks=exported.checks, profiles=profiles))

        folder, reused = self.chip.store.run(key, produce, what=part.name)
        if not self.plan.options.keep_intermediate:
            for deploy in deploys.values():
                self.chip.store.discard(deploy)
        return BuiltSlice(key=key, folder=folder, reused=reused, record=read_record(folder))

    def _deploy(self, key: str, net: NetSpec, template: Path, exported: ExportedSlice, report: Report) -> Path:
        start = time.monotonic()
        report(stage_event("deploy", net.name, "started"))
        folder, reused = self.chip.deploy(key, net, template, exported.weight_path)
        report(stage_event("deploy", net.name, "reused" if reused else "finished", start))
        return folder

    def assemble(self, built: Sequence[BuiltSlice], folder: Path) -> dict[str, str]:
        """Combine the slices of each chip into one bmodel."""
        nets = self.plan.net_set
        names = [BMODEL_NAME if nets.chips == 1 else f"chip{chip}.bmodel" for chip in range(nets.chips)]
        for chip, name in enumerate(names):
            own = [piece for piece in built if any(nets.net(net).chip == chip for net in piece.record.net_files)]
            self.chip.combine([piece.folder / _SLICE_NAME for piece in own], folder / name, what=Path(name).stem)
        return {net.name: names[net.chip] for net in nets.nets}
