"""Build a bundle: every slice on its own, then all of them together, then the manifest."""

from __future__ import annotations

import importlib.metadata
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpudeploy import __version__
from tpudeploy.compile.plan import BuildPlan
from tpudeploy.compile.slice_builder import BuiltSlice, SliceBuilder, stage_event
from tpudeploy.compile.store import (
    StageStore,
    replace_folder,
    storage_errors,
    sweep,
    sweep_abandoned,
    unique_work_folder,
)
from tpudeploy.compile.toolchain import find_toolchain
from tpudeploy.compile.workers import Report, run_all, worker_count
from tpudeploy.contracts.bundle import MANIFEST_NAME, BundleFormat, CompilerInfo, Manifest, NetProfile
from tpudeploy.contracts.net import NetSet
from tpudeploy.contracts.progress import Progress, StageEvent, no_progress
from tpudeploy.contracts.slices import Slice, SliceCheck, slices_of
from tpudeploy.runtime.bundle_store import describe_file, read_manifest, write_manifest
from tpudeploy.runtime.verified_files import VerifiedFiles
from tpudeploy.settings import Settings

_KEY_CHARS = 10


@dataclass(frozen=True)
class BuiltBundle:
    """A bundle in the local store.

    :param folder: where it lies.
    :param reused: whether it was there already.
    :param checks: how its slices compared with the reference; empty when it was reused.
    """

    folder: Path
    reused: bool
    checks: tuple[SliceCheck, ...] = ()


def build_bundle(
    plan: BuildPlan, settings: Settings, progress: Progress = no_progress, *, force: bool = False
) -> BuiltBundle:
    """Build a bundle, or return the one that is there already.

    Two processes that want the same bundle do not build it twice: one waits for the other. Interrupted at any
    moment, a second call goes on with the stages that were finished.

    :param force: put the bundle together again even if it is there; finished stages are used all the same.
    :raises ToolchainError: a bmodel is wanted and there is no TPU-MLIR.
    :raises CheckpointError: weights are missing or wrong.
    :raises CompileError: a slice differs from the reference, or a vendor tool failed.
    :raises StorageError: disk full or not writable.
    """
    key = plan.key(_tool_version(plan, settings))
    final = settings.bundles_dir / f"{plan.title}-{key[:_KEY_CHARS]}"
    if not force and (final / MANIFEST_NAME).is_file():
        return BuiltBundle(final, reused=True)
    store = StageStore(settings.stages_dir, waiting=_waiting(progress))
    for root in (settings.stages_dir, settings.bundles_dir):
        sweep_abandoned(root)
    with storage_errors(settings.home), store.lock(f"bundle-{key}", what=plan.title):
        if not force and (final / MANIFEST_NAME).is_file():
            return BuiltBundle(final, reused=True)
        built = BundleJob(plan, _builder(plan, settings, store), store, progress).run(final)
        # Their digests were taken just now: the first start need not read gigabytes again.
        VerifiedFiles(settings.home).trust(final.resolve(), read_manifest(final).files)
        return built


def _tool_version(plan: BuildPlan, settings: Settings) -> str:
    """Version of what makes the nets, told without loading it: a bundle that is there needs no more."""
    if plan.options.format is BundleFormat.ONNX:
        return importlib.metadata.version("onnx")
    return find_toolchain(settings).version


def _builder(plan: BuildPlan, settings: Settings, store: StageStore) -> SliceBuilder:
    # Only here torch and onnx are loaded: a run that finds its bundle starts without them.
    if plan.options.format is BundleFormat.ONNX:
        from tpudeploy.compile.cpu_build import CpuSliceBuilder

        return CpuSliceBuilder(plan, store)
    from tpudeploy.compile.chip_build import ChipSliceBuilder

    return ChipSliceBuilder.create(plan, store, settings)


def _waiting(progress: Progress) -> Callable[[str], None]:
    def report(text: str) -> None:
        progress(StageEvent(stage="wait", item=text, status="started", done=0, total=1))

    return report


class BundleJob:
    """One build in progress."""

    def __init__(self, plan: BuildPlan, builder: SliceBuilder, store: StageStore, progress: Progress) -> None:
        self.plan = plan
        self.builder = builder
        self.store = store
        self.progress = progress
        self.weights = plan.source.weights()
        self.parts = slices_of(plan.net_set)

    def run(self, final: Path) -> BuiltBundle:
        """Build into a folder beside ``final``, then rename it."""
        for patch in self.plan.patches:
            self.progress(StageEvent(stage="patch", item=patch.name, status="finished", done=0, total=len(self.parts)))
        built = self._build_slices()
        sweep(final)
        work = unique_work_folder(final)
        try:
            self._assemble(built, work)
            replace_folder(work, final)
        finally:
            shutil.rmtree(work, ignore_errors=True)  # gone already when all went well
        if not self.plan.options.keep_intermediate:
            for piece in built:
                self.store.discard(piece.key)
        return BuiltBundle(final, reused=False, checks=tuple(c for piece in built for c in piece.checks))

    def _build_slices(self) -> list[BuiltSlice]:
        total = len(self.parts)
        finished = 0

        def count(event: StageEvent) -> None:
            nonlocal finished
            if event.stage == "slice" and event.status != "started":
                finished += 1
            self.progress(event.model_copy(update={"done": finished, "total": total}))

        jobs = worker_count(self.plan.config, asked=self.plan.options.jobs)
        self.builder.prepare(self.parts, self.weights, jobs, count)
        return run_all(self._build_slice, self.parts, jobs=jobs, progress=count)

    def _build_slice(self, part: Slice, report: Report) -> BuiltSlice:
        start = time.monotonic()
        report(stage_event("slice", part.name, "started"))
        built = self.builder.build(part, self.weights, report)
        report(stage_event("slice", part.name, "reused" if built.reused else "finished", start))
        return built

    def _assemble(self, built: list[BuiltSlice], work: Path) -> None:
        total = len(self.parts)
        self.progress(StageEvent(stage="bundle", item=self.plan.title, status="started", done=total, total=total))
        start = time.monotonic()
        net_files = self.builder.assemble(built, work)
        tokenizer = self._copy_tokenizer(work)
        manifest = self._manifest(built, work, net_files, tokenizer)
        write_manifest(work, manifest)
        elapsed_s = time.monotonic() - start
        self.progress(
            StageEvent(
                stage="bundle", item=self.plan.title, status="finished", done=total, total=total, elapsed_s=elapsed_s
            )
        )

    def _copy_tokenizer(self, work: Path) -> tuple[str, ...]:
        """Copy the tokenizer's files; a checkpoint without them makes a bundle that takes token ids only."""
        copied = []
        for name in self.plan.source.adapter.tokenizer_files():
            origin = self.plan.source.checkpoint.folder / name
            if origin.is_file():
                (work / "tokenizer").mkdir(exist_ok=True)
                shutil.copyfile(origin, work / "tokenizer" / name)
                copied.append(f"tokenizer/{name}")
        return tuple(copied)

    def _stop_ids(self, tokenizer: tuple[str, ...]) -> tuple[int, ...]:
        """What config.json and chat template say; loading the tokenizer also finds one of another model early."""
        source = self.plan.source
        stops = set(source.config.eos_ids)
        if tokenizer:
            loaded = source.adapter.load_tokenizer(source.checkpoint.folder, source.config)
            stops |= source.adapter.chat_template(loaded).stop_ids
        return tuple(sorted(stops))

    def _manifest(
        self, built: list[BuiltSlice], work: Path, net_files: dict[str, str], tokenizer: tuple[str, ...]
    ) -> Manifest:
        source = self.plan.source
        paths = sorted(path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file())
        return Manifest(
            model=source.adapter.name,
            variant=source.variant,
            checkpoint_digest=source.checkpoint.fingerprint(),
            format=self.plan.options.format,
            quant=self.plan.scheme,
            nets=self.plan.net_set,
            net_files=net_files,
            tokenizer_files=tokenizer,
            stop_ids=self._stop_ids(tokenizer),
            patches=self.plan.patches,
            compiler=_with_profiles(self.builder.compiler, self.plan.net_set, built),
            tpudeploy_version=__version__,
            files=tuple(describe_file(work, path) for path in paths),
        )


def _with_profiles(compiler: CompilerInfo, nets: NetSet, built: Sequence[BuiltSlice]) -> CompilerInfo:
    """Cycles of every net; of nets that differ in their layer alone one profile."""
    told = {net: profile for piece in built for net, profile in piece.profiles.items()}
    profiles: dict[str, NetProfile] = {}
    for net in nets.nets:
        if net.name in told:
            profiles.setdefault(net.pattern, told[net.name])
    cycles = {net: profile.total_cycles for net, profile in told.items()}
    return compiler.model_copy(update={"cycles": cycles, "profiles": profiles})
