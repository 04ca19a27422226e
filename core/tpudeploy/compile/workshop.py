"""One slice on the bench: its weights and graphs in a temporary folder, checked against the torch reference."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tpudeploy.checkpoint.weights import ModelWeights
from tpudeploy.contracts.base import digest_json
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.slices import ModelExport, Slice, SliceCheck
from tpudeploy.graph.export import (
    check_arrays,
    check_slice,
    write_slice_graphs,
    write_slice_weights,
)
from tpudeploy.graph.slice_weights import slice_arrays
from tpudeploy.graph.weight_file import WeightFile

_EXPORT_TURN = threading.Lock()
"""Exporting holds a slice several times in memory; one at a time keeps the peak at one slice."""


@dataclass(frozen=True)
class ExportedSlice:
    """A slice as ONNX files over one weight file, checked."""

    part: Slice
    folder: Path
    weight_file: WeightFile
    checks: tuple[SliceCheck, ...]

    @property
    def weight_path(self) -> Path:
        """The ``.npz`` that all nets of the slice share."""
        return self.folder / self.weight_file.name


def slice_digest(part: Slice, weights: ModelWeights, export: ModelExport) -> str:
    """SHA-256 (hex) of what a slice's nets are made of: its published weights, its form, its nets."""
    return digest_json(
        {
            "weights": weights.digest(list(part.weights)),
            "published": weights.config.digest(),
            "export": export.digest(),
            "slice": part.digest(),
        }
    )


def export_slice(part: Slice, weights: ModelWeights, export: ModelExport, folder: Path) -> ExportedSlice:
    """Write and check one slice; blocks while another thread exports.

    :raises CompileError: a net differs from the torch reference.
    """
    with _EXPORT_TURN:
        weight_file = write_slice_weights(part, weights, export, folder)
        write_slice_graphs(part, export, weight_file, folder)
        checks = check_slice(part, weights, export, folder)
    return ExportedSlice(part, folder, weight_file, tuple(checks))


def checked_arrays(
    part: Slice, weights: ModelWeights, export: ModelExport
) -> tuple[dict[str, Array], tuple[SliceCheck, ...]]:
    """A slice's weights, float32, in memory, checked in its nets; blocks while another thread exports.

    :raises CompileError: a net differs from the torch reference.
    """
    with _EXPORT_TURN:
        arrays = dict(slice_arrays(part, weights, export.config, export.seq_length))
        checks = check_arrays(part, weights, export, arrays)
    return arrays, tuple(checks)


@contextmanager
def temporary_export(part: Slice, weights: ModelWeights, export: ModelExport, folder: Path) -> Iterator[ExportedSlice]:
    """An exported slice that is gone afterwards: its weight file is four times as large as what it becomes."""
    folder.mkdir(parents=True)
    try:
        yield export_slice(part, weights, export, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
