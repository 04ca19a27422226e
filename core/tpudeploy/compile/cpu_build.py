"""Slices for the CPU backend: ONNX nets whose weights are quantized as they would be on the chip."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tpudeploy.checkpoint.weights import ModelWeights
from tpudeploy.compile.cpu_nets import write_cpu_nets
from tpudeploy.compile.plan import COMPILE_CODE, BuildPlan
from tpudeploy.compile.slice_builder import (
    BuiltSlice,
    SliceBuilder,
    SliceRecord,
    read_record,
    stage_event,
    write_record,
)
from tpudeploy.compile.store import StageStore, stage_key
from tpudeploy.compile.workers import Report
from tpudeploy.compile.workshop import slice_digest, temporary_export
from tpudeploy.contracts.bundle import CompilerInfo
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.slices import Slice
from tpudeploy.graph.export import net_graphs


class CpuSliceBuilder(SliceBuilder):
    """Builds slices of ONNX bundles."""

    def __init__(self, plan: BuildPlan, store: StageStore) -> None:
        import onnx

        self.plan = plan
        self.store = store
        self.compiler = CompilerInfo(name="onnx", version=onnx.__version__)

    def build(self, part: Slice, weights: ModelWeights, report: Report) -> BuiltSlice:
        """Export, check and quantize one slice."""
        scheme = self.plan.scheme.of_kind(part.nets[0].kind)
        inputs = {
            "slice": slice_digest(part, weights, self.plan.export),
            "scheme": scheme.digest(),
            "tools": self.compiler.version,
        }
        key = stage_key("cpu-slice", inputs, code=COMPILE_CODE)

        def produce(folder: Path) -> None:
            start = time.monotonic()
            with temporary_export(part, weights, self.plan.export, folder / "export") as exported:
                report(stage_event("export", part.name, "finished", start))
                start = time.monotonic()
                graphs = net_graphs(part, self.plan.export)
                arrays = _stored_arrays(exported.weight_path)
                names = write_cpu_nets(folder, graphs, arrays, scheme, weights_name=f"{part.name}.bin")
            report(stage_event("quantize", part.name, "finished", start))
            write_record(folder, SliceRecord(net_files=names, checks=exported.checks))

        folder, reused = self.store.run(key, produce, what=part.name)
        return BuiltSlice(key=key, folder=folder, reused=reused, record=read_record(folder))

    def assemble(self, built: Sequence[BuiltSlice], folder: Path) -> dict[str, str]:
        """Gather all slices below ``nets/``."""
        nets = folder / "nets"
        nets.mkdir()
        net_files: dict[str, str] = {}
        for piece in built:
            for path in piece.folder.iterdir():
                if path.name != "slice.json":
                    _link_or_copy(path, nets / path.name)
            net_files |= {net: f"nets/{name}" for net, name in piece.record.net_files.items()}
        return net_files


def _stored_arrays(path: Path) -> Iterator[tuple[str, Array]]:
    with np.load(path) as archive:
        for name in archive.files:
            yield name, archive[name]


def _link_or_copy(origin: Path, target: Path) -> None:
    """A hard link where the disk has them: the pieces are never changed, and are discarded afterwards."""
    try:
        target.hardlink_to(origin)
    except OSError:
        shutil.copyfile(origin, target)
