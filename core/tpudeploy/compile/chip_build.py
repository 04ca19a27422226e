"""Slices for the chip: net shapes compiled once, the weights of each slice written in the chip's form, all joined."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tpudeploy.checkpoint.weights import ModelWeights
from tpudeploy.compile.bmodel.joined import fill_hollow
from tpudeploy.compile.chip_nets import ChipCompiler
from tpudeploy.compile.chip_pieces import piece_name, split_pieces, write_pieces
from tpudeploy.compile.chip_proof import cheapest_nets, prove
from tpudeploy.compile.chip_template import NetTemplate, make_template
from tpudeploy.compile.plan import COMPILE_CODE, BuildPlan
from tpudeploy.compile.profile import read_profile
from tpudeploy.compile.random_weights import RandomWeights
from tpudeploy.compile.slice_builder import (
    BuiltSlice,
    SliceBuilder,
    SliceRecord,
    read_record,
    stage_event,
    write_record,
)
from tpudeploy.compile.store import StageStore, stage_key, sweep, unique_work_folder
from tpudeploy.compile.toolchain import find_toolchain, prepare_kernels
from tpudeploy.compile.workers import MixedTasks, Report, run_all
from tpudeploy.compile.workshop import checked_arrays, slice_digest, temporary_export
from tpudeploy.contracts.bundle import CompilerInfo, NetProfile
from tpudeploy.contracts.net import NetSpec
from tpudeploy.contracts.progress import Progress
from tpudeploy.contracts.slices import Slice, SliceCheck
from tpudeploy.errors import CompileError
from tpudeploy.graph.export import net_graphs
from tpudeploy.graph.onnx_builder import OnnxBuilder
from tpudeploy.settings import Settings

BMODEL_NAME = "model.bmodel"


@dataclass
class _Shape:
    """A net shape: one net that has it, and its template once that is made."""

    net: NetSpec
    graph: OnnxBuilder
    template: NetTemplate | None = None
    made: threading.Event = field(default_factory=threading.Event)


@dataclass
class ChipSliceBuilder(SliceBuilder):
    """Builds slices of bmodel bundles."""

    plan: BuildPlan
    chip: ChipCompiler
    compiler: CompilerInfo
    shapes: dict[str, _Shape] = field(default_factory=dict)
    samples: dict[tuple[str, ...], Slice] = field(default_factory=dict)
    disproved: set[tuple[str, ...]] = field(default_factory=set)

    @classmethod
    def create(cls, plan: BuildPlan, store: StageStore, settings: Settings) -> ChipSliceBuilder:
        """Find the toolchain. :raises ToolchainError: there is none, or no C compiler."""
        toolchain = find_toolchain(settings)
        prepare_kernels(toolchain)
        chip = ChipCompiler(toolchain, store, plan.scheme, settings.logs_dir / plan.title)
        return cls(plan, chip, CompilerInfo(name="tpu-mlir", version=toolchain.version))

    def prepare(self, parts: Sequence[Slice], weights: ModelWeights, jobs: int, progress: Progress) -> None:
        """Compile each distinct net shape once, and prove the short way on the first layer of each form."""
        for part in parts:
            for net, graph in net_graphs(part, self.plan.export):
                self.shapes.setdefault(self.chip.text_key(net, graph), _Shape(net, graph))
            self.samples.setdefault(self._form(part), part)
        layers = {key for part in parts if part.layer is not None for key in self._form(part)}
        # Its name is this bundle's, of which only one process works at a time: what a killed one left is swept.
        folder = self.chip.store.root / f"random-{self.plan.key(self.compiler.version)}"
        sweep(folder)
        work = unique_work_folder(folder)
        try:
            random = RandomWeights(work)
            for shape in self.shapes.values():
                random.expect(shape.graph)
            # The proof waits for the templates of layers: those are under way when it begins.
            layer_tasks: list[_Shape | Slice] = [shape for key, shape in self.shapes.items() if key in layers]
            layer_tasks += [part for part in self.samples.values() if part.layer is not None]
            tables: list[_Shape | Slice] = [shape for key, shape in self.shapes.items() if key not in layers]
            tasks = MixedTasks(layer_tasks, tables, jobs=jobs)

            def run(_turn: int, report: Report) -> None:
                with tasks.take() as task:
                    if isinstance(task, Slice):
                        self._prove(task, weights, report)
                    else:
                        self._compile(task, random, report)

            run_all(run, range(len(tasks)), jobs=jobs, progress=progress)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _form(self, part: Slice) -> tuple[str, ...]:
        """The shapes of a slice's nets: slices that have the same differ in numbers and names alone."""
        return tuple(self.chip.text_key(net, graph) for net, graph in net_graphs(part, self.plan.export))

    def _templates(self, part: Slice) -> dict[str, NetTemplate]:
        """The templates of a slice's nets, by net name."""
        found = {}
        for net, key in zip(part.nets, self._form(part), strict=True):
            template = self.shapes[key].template
            if template is None:
                raise CompileError(f"the graph of {net.name} was not compiled.")
            found[net.name] = template
        return found

    def _compile(self, shape: _Shape, random: RandomWeights, report: Report) -> None:
        try:
            for stage in ("transform", "deploy"):
                start = time.monotonic()
                report(stage_event(stage, shape.net.name, "started"))
                if stage == "transform":
                    _, reused = self.chip.text(shape.net, shape.graph, random)
                else:
                    shape.template, reused = make_template(self.chip, shape.net, shape.graph, random)
                report(stage_event(stage, shape.net.name, "reused" if reused else "finished", start))
        finally:
            random.done(shape.graph)
            shape.made.set()  # also of one that failed: nobody may wait for ever
        if shape.template and shape.template.problem:
            reason = f"{shape.net.name} and its like are compiled one by one, which takes longer"
            report(stage_event("notice", f"{reason}: {shape.template.problem}", "finished"))

    def _prove(self, part: Slice, weights: ModelWeights, report: Report) -> None:
        keys = self._form(part)
        for key in keys:
            self.shapes[key].made.wait()
        if any(self.shapes[key].template is None for key in keys):
            return  # what failed tells of it itself
        templates = self._templates(part)
        if any(template.layout is None for template in templates.values()):
            return
        start = time.monotonic()
        report(stage_event("proof", part.name, "started"))
        equal, reused = prove(self.chip, part, weights.held(), self.plan.export, templates)
        report(stage_event("proof", part.name, "reused" if reused else "finished", start))
        if not equal:
            self.disproved.add(self._form(part))
            text = f"{part.name} differs from what the compiler makes of it; layers are compiled one by one instead"
            report(stage_event("notice", text, "finished"))

    def build(self, part: Slice, weights: ModelWeights, report: Report) -> BuiltSlice:
        """Write one slice's nets: the short way where it is known and proved, else through the compiler."""
        weights = weights.held()
        templates = self._templates(part)
        short = self._form(part) not in self.disproved and all(item.layout for item in templates.values())
        digest = slice_digest(part, weights, self.plan.export)
        inputs = {"templates": [templates[net.name].key for net in part.nets], "weights": digest, "short": short}
        key = stage_key("chip-slice", inputs, code=COMPILE_CODE)
        deploys = {net.name: self.chip.deploy_key(templates[net.name].text, net, digest) for net in part.nets}

        def produce(folder: Path) -> None:
            write = self._write_short if short else self._write_long
            blocks, checks, profiles = write(part, weights, templates, deploys, folder, report)
            names = {net.name: piece_name(net) for net in part.nets}
            write_record(folder, SliceRecord(net_files=names, blocks=blocks, checks=checks, profiles=profiles))

        folder, reused = self.chip.store.run(key, produce, what=part.name)
        if not short and not self.plan.options.keep_intermediate:
            for deploy in deploys.values():
                self.chip.store.discard(deploy)
        return BuiltSlice(key=key, folder=folder, reused=reused, record=read_record(folder))

    def _write_short(
        self,
        part: Slice,
        weights: ModelWeights,
        templates: dict[str, NetTemplate],
        _deploys: dict[str, str],
        folder: Path,
        report: Report,
    ) -> tuple[dict[str, str], tuple[SliceCheck, ...], dict[str, NetProfile]]:
        """From templates. All nets are checked of a sample, the cheapest of every slice."""
        start = time.monotonic()
        sample = self.samples[self._form(part)] == part
        checked = part if sample else part.model_copy(update={"nets": cheapest_nets(part)})
        arrays, checks = checked_arrays(checked, weights, self.plan.export)
        report(stage_event("export", part.name, "finished", start))
        start = time.monotonic()
        scheme = self.plan.scheme.of_kind(part.nets[0].kind)
        blocks = write_pieces(part.nets, templates, arrays, scheme, folder)
        report(stage_event("quantize", part.name, "finished", start))
        profiles = {name: template.profile for name, template in templates.items() if template.profile is not None}
        return blocks, checks, profiles

    def _write_long(
        self,
        part: Slice,
        weights: ModelWeights,
        templates: dict[str, NetTemplate],
        deploys: dict[str, str],
        folder: Path,
        report: Report,
    ) -> tuple[dict[str, str], tuple[SliceCheck, ...], dict[str, NetProfile]]:
        """Through the compiler, net by net."""
        start = time.monotonic()
        compiled: dict[str, Path] = {}
        profiles: dict[str, NetProfile] = {}
        with temporary_export(part, weights, self.plan.export, folder / "export") as exported:
            report(stage_event("export", part.name, "finished", start))
            for net in part.nets:
                start = time.monotonic()
                report(stage_event("deploy", net.name, "started"))
                text = templates[net.name].text
                piece, reused = self.chip.deploy(deploys[net.name], net, text, exported.weight_path)
                report(stage_event("deploy", net.name, "reused" if reused else "finished", start))
                compiled[net.name] = piece / "net.bmodel"
                profile = read_profile(piece)
                if profile is not None:
                    profiles[net.name] = profile
        return split_pieces(compiled, part.nets, folder), exported.checks, profiles

    def assemble(self, built: Sequence[BuiltSlice], folder: Path) -> dict[str, str]:
        """Join the slices of each chip to one bmodel; equal blocks are there once."""
        nets = self.plan.net_set
        names = [BMODEL_NAME if nets.chips == 1 else f"chip{chip}.bmodel" for chip in range(nets.chips)]
        for chip, name in enumerate(names):
            own = [piece for piece in built if any(nets.net(net).chip == chip for net in piece.record.net_files)]
            hollow = folder / f"hollow-{name}"
            pieces = [piece.folder / file for piece in own for file in piece.record.net_files.values()]
            self.chip.combine(pieces, hollow, what=Path(name).stem)
            blocks = {digest: piece.folder / file for piece in own for digest, file in piece.record.blocks.items()}
            fill_hollow(hollow, folder / name, blocks)
            hollow.unlink()
        return {net.name: names[net.chip] for net in nets.nets}
