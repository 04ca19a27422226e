"""Verify a model: nets one by one and answers as a whole, in every form of it, against the torch reference."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from tpudeploy.contracts.backend import Backend
from tpudeploy.contracts.base import Value
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.net import Split
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.contracts.progress import Progress, StageEvent, no_progress
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.plugins import PluginRegistry
from tpudeploy.runtime.bundle_store import Bundle, open_bundle
from tpudeploy.runtime.engine import Engine, open_engine
from tpudeploy.runtime.verified_files import VerifiedFiles
from tpudeploy.settings import Settings
from tpudeploy.verify.answers import GreedyAnswer, answer_greedily, judge, needed_rows
from tpudeploy.verify.limits import LIMITS
from tpudeploy.verify.nets import check_session, check_slices
from tpudeploy.verify.prompts import Prompt, default_prompts
from tpudeploy.verify.report import NetRow, TargetReport, VerifyReport
from tpudeploy.verify.targets import Target, choose_targets

if TYPE_CHECKING:
    from tpudeploy.checkpoint.weights import ModelWeights
    from tpudeploy.compile.plan import BuildPlan
    from tpudeploy.compile.source import ModelSource


class VerifyOptions(Value):
    """What to verify.

    :param quant: the mode to verify; the unquantized ONNX model always comes first.
    :param prompts: what to ask; empty takes what fits the model (see :func:`default_prompts`).
    :param max_new_tokens: tokens of an answer at most.
    :param jobs: slices built at once; None takes what cores and memory allow.
    :param chips: how many chips the model is divided over, and ``split`` how.
    """

    quant: QuantMode
    nets: NetPlan = NetPlan()
    chips: int = Field(default=1, ge=1)
    split: Split = Split.TENSOR
    prompts: tuple[Prompt, ...] = ()
    max_new_tokens: int = Field(default=8, gt=0)
    jobs: int | None = Field(default=None, gt=0)


@dataclass(frozen=True)
class _Measured:
    """One target, before the reference has judged its answers."""

    target: Target
    folder: Path | None
    nets: tuple[NetRow, ...]
    answers: tuple[GreedyAnswer, ...]
    elapsed_s: float


def verify_model(
    source: ModelSource,
    options: VerifyOptions,
    backends: Sequence[Backend],
    settings: Settings,
    registry: PluginRegistry,
    progress: Progress = no_progress,
) -> VerifyReport:
    """Build what is missing, run it, and compare it with the published model in float32.

    Memory: a loaded bundle, and one slice of the reference.

    :param backends: where to run the model; see :func:`tpudeploy.verify.usable_backends`.
    :raises TpuDeployError: anything that can go wrong between a checkpoint and a device.
    """
    start = time.monotonic()
    targets, skipped = choose_targets(options.quant, backends, source.config, settings)
    job = _Job(source, options, settings, registry, progress)
    # All is built before anything is loaded: a build needs its memory for itself, and may fail after half an hour.
    folders = [job.build(target) for target in targets]
    measured = [job.measure(target, folder) for target, folder in zip(targets, folders, strict=True)]
    return VerifyReport(
        model=source.title,
        quant=options.quant.value,
        seq_length=options.nets.seq_length,
        targets=tuple(job.judged(measured)),
        skipped=tuple(skipped),
        elapsed_s=time.monotonic() - start,
    )


def verify_folder(
    plan: BuildPlan,
    backend: Backend,
    folder: Path,
    settings: Settings,
    registry: PluginRegistry,
    progress: Progress = no_progress,
) -> TargetReport:
    """Compare one bundle that is built already with the published model in float32; nothing else is built.

    :param plan: what the bundle was built from.
    :raises TpuDeployError: the bundle does not run, or is not of this plan.
    """
    chosen = plan.options
    options = VerifyOptions(
        quant=chosen.quant, nets=chosen.nets, jobs=chosen.jobs, chips=chosen.chips, split=chosen.split
    )
    job = _Job(plan.source, options, settings, registry, progress)
    measured = job.measure(Target(chosen.quant, backend), folder)
    return job.judged([measured])[0]


class _Job:
    """One verification in progress."""

    def __init__(
        self,
        source: ModelSource,
        options: VerifyOptions,
        settings: Settings,
        registry: PluginRegistry,
        progress: Progress,
    ) -> None:
        self.source = source
        self.options = options
        self.settings = settings
        self.registry = registry
        self.progress = progress
        self.weights: ModelWeights = source.weights()
        self.prompts = options.prompts or self._default_prompts()

    def _default_prompts(self) -> tuple[Prompt, ...]:
        plan = self.options.nets
        chunks = [stage.new_tokens for stage in plan.prefill]
        chunk = max(chunks) if chunks else min(128, plan.seq_length)
        return default_prompts(self.source, chunk_tokens=chunk, longest=plan.seq_length)

    def build(self, target: Target) -> Path | None:
        """The folder of a target's bundle; None where it has none."""
        if target.backend is None:
            return None
        from tpudeploy.compile.build import build_bundle

        return build_bundle(self._plan(target), self.settings, self.progress).folder

    def measure(self, target: Target, folder: Path | None) -> _Measured:
        """Compare a target's nets, and let it answer."""
        start = time.monotonic()
        plan, limits, report = self._plan(target), LIMITS[target.quant], self._reporter(target.name)
        if target.backend is None or folder is None:
            rows = tuple(check_slices(plan, self.weights, limits, self.settings.stages_dir, report))
            return _Measured(target, folder, rows, (), time.monotonic() - start)
        bundle = open_bundle(folder, verified=VerifiedFiles(self.settings.home, reread=True))
        with open_engine(bundle, target.backend) as engine:
            rows = tuple(check_session(plan, self.weights, engine.session, limits, report))
            answers = tuple(self._answers(engine, bundle, report))
        return _Measured(target, folder, rows, answers, time.monotonic() - start)

    def _answers(self, engine: Engine, bundle: Bundle, report: Callable[[str], None]) -> Iterator[GreedyAnswer]:
        limit, stop_ids = self.options.max_new_tokens, bundle.manifest.stop_ids
        for prompt in self.prompts:
            report(prompt.name)
            yield answer_greedily(engine, prompt, max_new_tokens=limit, stop_ids=stop_ids)

    def judged(self, measured: Sequence[_Measured]) -> list[TargetReport]:
        """Run the reference once over all answers, and judge each target by it."""
        from tpudeploy.verify.reference import reference_logits

        needed = needed_rows([answer for one in measured for answer in one.answers])
        logits = reference_logits(self.weights, needed, self._reporter("reference"))
        return [_target_report(one, logits) for one in measured]

    def _plan(self, target: Target) -> BuildPlan:
        from tpudeploy.compile.plan import BuildOptions, plan_build

        own = self.options
        options = BuildOptions(
            quant=target.quant, format=target.format, nets=own.nets, jobs=own.jobs, chips=own.chips, split=own.split
        )
        return plan_build(self.source, options, self.registry)

    def _reporter(self, what: str) -> Callable[[str], None]:
        """Turns names of slices and prompts into progress."""
        total = self.source.config.num_layers + 2 + len(self.prompts)
        done = 0

        def report(item: str) -> None:
            nonlocal done
            self.progress(StageEvent(stage="verify", item=f"{what}: {item}", status="started", done=done, total=total))
            done += 1

        return report


def _target_report(measured: _Measured, logits: Mapping[tuple[int, ...], Array]) -> TargetReport:
    target, limits = measured.target, LIMITS[measured.target.quant]
    return TargetReport(
        name=target.name,
        backend=target.backend.name if target.backend else "",
        quant=target.quant.value,
        bundle=str(measured.folder or ""),
        limits=limits,
        nets=measured.nets,
        prompts=tuple(judge(answer, logits[answer.context][-len(answer.ids) :], limits) for answer in measured.answers),
        elapsed_s=measured.elapsed_s,
    )
