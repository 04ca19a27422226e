"""Export a whole model to a folder of ONNX slices, for people and for other tools."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from tpudeploy.compile.plan import BuildPlan
from tpudeploy.compile.store import free_bytes, publish_folder, storage_errors, sweep, unique_work_folder
from tpudeploy.compile.workshop import export_slice
from tpudeploy.contracts.progress import Progress, StageEvent, no_progress
from tpudeploy.contracts.slices import SliceCheck, slices_of
from tpudeploy.errors import StorageError, UsageError

NET_SET_NAME = "nets.json"


def export_model(plan: BuildPlan, folder: Path, progress: Progress = no_progress) -> list[SliceCheck]:
    """Write every slice as float32 ONNX, each checked against the torch reference as it is made.

    The folder holds one ``NET.onnx`` a net, one ``SLICE.npz`` of weights a slice, and ``nets.json``, the net set. It
    appears whole or not at all.

    :param folder: must not exist, or be empty.
    :raises UsageError: the folder holds something already.
    :raises StorageError: the disk is too small, or not writable.
    :raises CompileError: a slice differs from the reference.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not empty.", hint="Choose another --output.")
    needed = 4 * plan.config.parameters
    if free_bytes(folder) < needed:
        raise StorageError(
            f"the ONNX slices need {needed / 1e9:.1f} GB, but {free_bytes(folder) / 1e9:.1f} GB are free in {folder}.",
            hint="Choose an --output on a larger disk; compiling to a bmodel needs far less.",
        )
    folder = folder.absolute()
    with storage_errors(folder):
        sweep(folder)
        work = unique_work_folder(folder)
        try:
            checks = _export_slices(plan, work, progress)
            (work / NET_SET_NAME).write_text(plan.net_set.model_dump_json(indent=1))
            if folder.exists():
                folder.rmdir()
            publish_folder(work, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return checks


def _export_slices(plan: BuildPlan, work: Path, progress: Progress) -> list[SliceCheck]:
    weights = plan.source.weights()
    parts = slices_of(plan.net_set)
    checks: list[SliceCheck] = []
    for done, part in enumerate(parts):
        start = time.monotonic()
        progress(StageEvent(stage="export", item=part.name, status="started", done=done, total=len(parts)))
        checks.extend(export_slice(part, weights, plan.export, work).checks)
        elapsed_s = time.monotonic() - start
        progress(
            StageEvent(
                stage="export", item=part.name, status="finished", done=done + 1, total=len(parts), elapsed_s=elapsed_s
            )
        )
    (work / "checks.json").write_text(json.dumps([check.model_dump(mode="json") for check in checks], indent=1))
    return checks
