"""Each net on its own beside the reference: of a loaded bundle, or as ONNX slices that are gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tpudeploy.contracts.adapter import Tolerance
from tpudeploy.contracts.backend import Session
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.net import NetSpec
from tpudeploy.verify.bench import NetBench
from tpudeploy.verify.limits import Limits
from tpudeploy.verify.report import NetRow, Verdict

if TYPE_CHECKING:
    from tpudeploy.checkpoint.weights import ModelWeights
    from tpudeploy.compile.plan import BuildPlan

Report = Callable[[str], None]
"""Told the name of each slice before it is compared."""

_ANY = Tolerance(absolute=1e30, cosine=-1)


def check_session(
    plan: BuildPlan, weights: ModelWeights, session: Session, limits: Limits, report: Report
) -> Iterator[NetRow]:
    """Compare every net of a loaded bundle; one slice of the reference is in memory at a time.

    :raises BackendError: a net failed.
    """
    from tpudeploy.contracts.slices import slices_of
    from tpudeploy.graph.slice_check import reference_cases

    bench = NetBench(session)
    for part in slices_of(session.manifest.nets):
        report(part.name)
        for case in reference_cases(part, weights, plan.config):
            yield net_row(case.net, case.outputs, bench.run(case.net, case.inputs), limits)


def check_slices(
    plan: BuildPlan, weights: ModelWeights, limits: Limits, folder: Path, report: Report
) -> Iterator[NetRow]:
    """Export one slice after another as float32 ONNX and compare its nets: for models too large for a bundle of it.

    :param folder: where a slice may lie for as long as it is compared; a name that leftovers of a killed build have
        lets them be swept with those.
    :raises StorageError: no room there.
    """
    from tpudeploy.compile.store import storage_errors
    from tpudeploy.compile.workshop import temporary_export
    from tpudeploy.contracts.slices import slices_of

    lenient = plan.export.model_copy(update={"tolerance": _ANY})
    folder.mkdir(parents=True, exist_ok=True)
    with (
        storage_errors(folder),
        tempfile.TemporaryDirectory(dir=folder, prefix=".verify-", suffix=".incomplete") as work,
    ):
        for part in slices_of(plan.net_set):
            report(part.name)
            with temporary_export(part, weights, lenient, Path(work) / part.name) as exported:
                for net, check in zip(part.nets, exported.checks, strict=True):
                    yield _row(net, "any", check.cosine, check.max_error, limits)


def net_row(net: NetSpec, expected: Sequence[Array], actual: Sequence[Array], limits: Limits) -> NetRow:
    """Compare the outputs of one net.

    :param expected: the reference's outputs in the net's order; ``actual`` alike.
    """
    from tpudeploy.graph.export import compare

    measured = [compare(*pair) for pair in zip(expected, actual, strict=True)]
    cosines = [cosine if np.isfinite(cosine) else 0.0 for _, cosine in measured]
    worst = int(np.argmin(cosines))
    error = max((error for error, _ in measured), key=lambda error: np.inf if np.isnan(error) else error)
    return _row(net, net.outputs[worst].name, cosines[worst], error, limits)


def _row(net: NetSpec, output: str, cosine: float, max_error: float, limits: Limits) -> NetRow:
    finite = bool(np.isfinite(max_error))
    return NetRow(
        net=net.name,
        kind=net.kind,
        layer=net.layer,
        stage=net.stage,
        output=output,
        cosine=cosine if finite else 0.0,
        max_error=max_error if finite else None,
        verdict=Verdict.OK if finite and cosine >= limits.net_cosine else Verdict.WORSE,
    )
