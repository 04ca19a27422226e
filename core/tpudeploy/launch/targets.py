"""What a request points at: a finished bundle, or a checkpoint to build one from."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpudeploy.compile.source import ModelSource, open_source, parse_model
from tpudeploy.contracts.adapter import ModelAdapter, ModelVariant
from tpudeploy.contracts.net_plan import NetPlan
from tpudeploy.contracts.progress import Progress, no_progress
from tpudeploy.contracts.quant import parse_quant_mode
from tpudeploy.errors import TokenizerError, UsageError
from tpudeploy.launch.backends import bundle_format, choose_backend, choose_devices
from tpudeploy.launch.building import build, require_export_packages
from tpudeploy.launch.bundles import find_bundle
from tpudeploy.launch.fit import require_room
from tpudeploy.launch.lengths import choose_seq_length
from tpudeploy.launch.loaded import NO_TOKENIZER_HINT, LoadedModel, identity_of
from tpudeploy.launch.request import LaunchRequest
from tpudeploy.launch.requirement import bundle_requirement, model_requirement
from tpudeploy.launch.text import TextTools, has_tokenizer, load_text
from tpudeploy.launch.usage import check_agreement, check_usage
from tpudeploy.launch.weights import require_weights
from tpudeploy.plugins import PluginRegistry
from tpudeploy.runtime.bundle_store import Bundle, open_bundle
from tpudeploy.runtime.engine import open_engine
from tpudeploy.runtime.verified_files import VerifiedFiles
from tpudeploy.settings import Settings


class Target(ABC):
    """A model that was found; nothing was built or loaded yet."""

    @abstractmethod
    def text(self) -> TextTools | None:
        """Tokenizer and template, or None where there are no tokenizer files.

        :raises TokenizerError: a tokenizer that is corrupt, or another model's.
        """

    @abstractmethod
    def load(
        self, *, prompt_tokens: int = 0, max_new_tokens: int | None = None, progress: Progress = no_progress
    ) -> LoadedModel:
        """Make it ready to answer, building what is missing.

        :param prompt_tokens: length of the longest prompt that is known to come.
        :param max_new_tokens: length of its answer at most, where that is known.
        :raises TpuDeployError: anything that can go wrong between a checkpoint and a device.
        """

    def bundle_of(
        self, *, prompt_tokens: int = 0, max_new_tokens: int | None = None, progress: Progress = no_progress
    ) -> Bundle:
        """Its bundle, built where it is missing, and put on no device: others will. Parameters as in :meth:`load`.

        :raises UsageError: it is no bundle and has none.
        """
        raise UsageError("this needs a bundle, and a bmodel of others is none.", hint="Name a model, or give --bundle.")

    def require_text(self) -> TextTools:
        """Tokenizer and template. :raises TokenizerError: none there, or not this model's."""
        text = self.text()
        if text is None:
            raise TokenizerError("there is no tokenizer for this model.", hint=NO_TOKENIZER_HINT)
        return text


def open_target(request: LaunchRequest, settings: Settings, registry: PluginRegistry) -> Target:
    """Find what a request points at.

    :raises UnknownNameError: no such model, variant, backend or quantization mode.
    :raises CheckpointError: its weights are not here, or not of this model.
    :raises BundleError: the bundle is missing, corrupt, or not what was asked for.
    :raises BackendError: the backend cannot run on this machine.
    """
    check_usage(request)
    if request.bmodel is not None:
        from tpudeploy.launch.foreign import ForeignTarget

        return ForeignTarget.open(request, settings, registry)
    if request.bundle is not None:
        choose_backend(registry, request.backend)  # a wrong name is told before gigabytes are read
        request = request.model_copy(update={"bundle": find_bundle(request.bundle, settings)})
        return BundleTarget.open(request, settings, registry)
    return CheckpointTarget.open(request, settings, registry)


def check_names(request: LaunchRequest, registry: PluginRegistry) -> tuple[ModelAdapter, ModelVariant]:
    """Look up every name in a request for a model.

    :raises UnknownNameError: no such model, variant, backend or quantization mode.
    :raises BackendError: the backend cannot run on this machine, or has no such devices.
    """
    if not request.model:
        raise UsageError("no model was named.", hint="`tpudeploy list-models` names them; or give --bundle.")
    found = parse_model(request.model, registry)
    if request.quant:
        parse_quant_mode(request.quant)
    backend = choose_backend(registry, request.backend)
    if request.devices and request.bmodel is None:  # how many chips a bmodel is for is in the file
        choose_devices(backend, request.devices, len(request.devices))
    return found


@dataclass(frozen=True)
class BundleTarget(Target):
    """A bundle, its files checked."""

    request: LaunchRequest
    registry: PluginRegistry
    bundle: Bundle

    @classmethod
    def open(cls, request: LaunchRequest, settings: Settings, registry: PluginRegistry) -> BundleTarget:
        """Check a bundle against its digests, and against the rest of the request."""
        if request.bundle is None:
            raise UsageError("no bundle was named.")
        bundle = open_bundle(request.bundle, verified=_verified(request, settings))
        check_agreement(
            bundle.folder, bundle.manifest, model=request.model, quant=request.quant, seq_length=request.seq_length
        )
        return cls(request, registry, bundle)

    def text(self) -> TextTools | None:
        """From the bundle, by the plugin that knows its model."""
        return bundle_text(self.bundle, self.registry)

    def bundle_of(
        self, *, prompt_tokens: int = 0, max_new_tokens: int | None = None, progress: Progress = no_progress
    ) -> Bundle:
        """The bundle itself."""
        return self.bundle

    def load(
        self, *, prompt_tokens: int = 0, max_new_tokens: int | None = None, progress: Progress = no_progress
    ) -> LoadedModel:
        """Put the bundle on its device; its length is what it was compiled for."""
        return load_bundle(self.bundle, self.registry, self.request.backend, self.request.devices)


@dataclass(frozen=True)
class CheckpointTarget(Target):
    """A checkpoint, with everything that its bundle depends on but the length."""

    request: LaunchRequest
    settings: Settings
    registry: PluginRegistry
    source: ModelSource

    @classmethod
    def open(cls, request: LaunchRequest, settings: Settings, registry: PluginRegistry) -> CheckpointTarget:
        """Find the checkpoint; what was misspelled is told before weights are missed."""
        adapter, variant = check_names(request, registry)
        require_weights(adapter, variant, settings, model_dir=request.model_dir)
        source = open_source(adapter, variant, settings, model_dir=request.model_dir)
        return cls(request, settings, registry, source)

    def text(self) -> TextTools | None:
        """From the checkpoint folder."""
        folder = self.source.checkpoint.folder
        if not has_tokenizer(self.source.adapter, folder):
            return None
        return load_text(self.source.adapter, folder, self.source.config)

    def load(
        self, *, prompt_tokens: int = 0, max_new_tokens: int | None = None, progress: Progress = no_progress
    ) -> LoadedModel:
        """Build the bundle, or find it in the store, then put it on its device."""
        bundle = self.bundle_of(prompt_tokens=prompt_tokens, max_new_tokens=max_new_tokens, progress=progress)
        return load_bundle(bundle, self.registry, self.request.backend, self.request.devices)

    def bundle_of(
        self, *, prompt_tokens: int = 0, max_new_tokens: int | None = None, progress: Progress = no_progress
    ) -> Bundle:
        """Build it, or find it in the store."""
        seq_length = choose_seq_length(
            self.request.seq_length,
            self.source.config.seq_length,
            prompt_tokens=prompt_tokens,
            max_new_tokens=max_new_tokens,
        )
        folder = self._build(seq_length, progress)
        return open_bundle(folder, verified=_verified(self.request, self.settings))

    def _build(self, seq_length: int, progress: Progress) -> Path:
        require_export_packages()
        from tpudeploy.compile.plan import BuildOptions, plan_build

        backend = choose_backend(self.registry, self.request.backend)
        chips = max(1, len(self.request.devices))
        # A build takes long: what can never run is told before it.
        devices = choose_devices(backend, self.request.devices, chips)
        quant = self.request.quant
        options = BuildOptions(
            quant=parse_quant_mode(quant) if quant else self.source.adapter.default_quant,
            format=bundle_format(backend),
            nets=NetPlan(seq_length=seq_length),
            chips=chips,
            split=self.request.split,
        )
        plan = plan_build(self.source, options, self.registry)
        needed = model_requirement(self.source.title, plan.net_set, plan.scheme)
        require_room(needed, backend, devices)
        return build(plan, self.settings, self.registry, progress, force=self.request.force).folder


def _verified(request: LaunchRequest, settings: Settings) -> VerifiedFiles:
    return VerifiedFiles(settings.home, reread=request.verify_files)


def bundle_text(bundle: Bundle, registry: PluginRegistry) -> TextTools | None:
    """Tokenizer and template of a bundle; None where it ships no tokenizer, or no plugin knows its model."""
    adapter = registry.models.get(bundle.manifest.model)
    if adapter is None or not bundle.manifest.tokenizer_files:
        return None
    return load_text(adapter, bundle.tokenizer_folder, bundle.manifest.nets.config)


def load_bundle(bundle: Bundle, registry: PluginRegistry, backend: str, devices: Sequence[int]) -> LoadedModel:
    """Put a bundle on its device.

    :param backend: a backend's name, or ``auto``.
    :param devices: device ids, one a chip; empty lets the backend choose.
    :raises BundleError: the backend does not run such bundles, or the net set cannot run.
    :raises BackendError: the backend or a device is not available, or has no room: then nothing was loaded.
    """
    started = time.perf_counter()
    chosen = choose_backend(registry, backend, bundle.manifest.format)
    text = bundle_text(bundle, registry)
    chips = bundle.manifest.nets.chips
    if len(devices) in (0, chips):  # another number is told by the engine
        devices = choose_devices(chosen, devices, chips)
        require_room(bundle_requirement(bundle.folder, bundle.manifest, chosen), chosen, devices)
    engine = open_engine(bundle, chosen, devices=devices)
    load_s = time.perf_counter() - started
    return LoadedModel(identity_of(bundle), chosen, engine, text, tuple(devices), load_s)
