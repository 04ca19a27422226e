"""``doctor --model``: what a model or bundle needs, beside what the devices of this machine have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tpudeploy.compile.plan import model_patches
from tpudeploy.compile.source import parse_model
from tpudeploy.contracts.backend import Backend
from tpudeploy.contracts.base import Value
from tpudeploy.contracts.bundle import BundleFormat, Manifest
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.finding import Finding
from tpudeploy.contracts.net_plan import DEFAULT_SEQ_LENGTH, NetPlan
from tpudeploy.contracts.net_split import split_nets
from tpudeploy.contracts.patch import apply_patches
from tpudeploy.contracts.quant import parse_quant_mode, resolve_quant
from tpudeploy.launch.backends import bundle_format, check_availability, choose_backend, choose_devices
from tpudeploy.launch.bundles import locate_bundle
from tpudeploy.launch.fit import DeviceFit, examine_fit, soc_finding
from tpudeploy.launch.request import AUTO_BACKEND, LaunchRequest
from tpudeploy.launch.requirement import Requirement, bundle_requirement, model_requirement
from tpudeploy.pack import open_archive
from tpudeploy.plugins import PluginRegistry
from tpudeploy.runtime.bundle_store import read_manifest
from tpudeploy.runtime.engine import wrong_device_count
from tpudeploy.settings import Settings


class FitReport(Value):
    """A model's need, chip by chip.

    :param backend: the backend whose devices were looked at; empty where there is no chip.
    :param soc: for planning on another machine: what a SoC box would have to be set to; None where it does not matter.
    """

    requirement: Requirement
    backend: str
    devices: tuple[DeviceFit, ...]
    soc: Finding | None

    @property
    def fits(self) -> bool:
        """Whether nothing speaks against running it."""
        return all(fit.finding.verdict != "fail" for fit in self.devices)


def report_fit(
    request: LaunchRequest, settings: Settings, registry: PluginRegistry, *, chips: int | None = None
) -> FitReport:
    """Compute what a model or bundle needs, and compare; nothing is fetched, built or loaded.

    :param request: the model, or the bundle (of a packed one the sizes of its files stand for what its nets say); with
        ``auto`` only real chips are looked at.
    :param chips: over how many chips to divide a model; None takes as many as devices are named, or one, as a
        launch does; a bundle knows its own.
    :raises UnknownNameError: no such model, variant, mode or backend.
    :raises UsageError: the model cannot be divided so, or another number of devices was named.
    :raises BundleError: a bundle that is missing or damaged.
    :raises BackendError: the named backend cannot run here, or has no such devices.
    """
    folder, manifest = open_manifest(request.bundle, settings) if request.bundle is not None else (None, None)
    form = manifest.format if manifest is not None else _form(registry, request.backend)
    backend = _backend(registry, request.backend, form)
    if manifest is not None:
        reader = backend or next(iter(bundle_readers(registry, form)), None)
        requirement = bundle_requirement(folder, manifest, reader)
    else:
        requirement = _model_requirement(request, registry, form, chips or max(1, len(request.devices)))
    numbers = _devices(request, backend, len(requirement.chips))
    fits = examine_fit(requirement, backend, numbers)
    on_chips = form is BundleFormat.BMODEL and all(fit.device is None for fit in fits)
    return FitReport(
        requirement=requirement,
        backend=backend.name if backend is not None else "",
        devices=fits,
        soc=soc_finding(requirement) if on_chips and len(fits) == 1 else None,
    )


def open_manifest(path: Path, settings: Settings) -> tuple[Path | None, Manifest]:
    """What a bundle says of itself, nothing unpacked; its folder, or None where it is packed.

    :raises BundleError: a bundle that is missing or damaged.
    """
    place = locate_bundle(path, settings)
    if place.is_dir():
        return place, read_manifest(place)
    return None, open_archive(place).manifest


def _form(registry: PluginRegistry, backend: str) -> BundleFormat:
    """What a model would be built as: for chips, unless a backend was named that takes something else."""
    return BundleFormat.BMODEL if backend == AUTO_BACKEND else bundle_format(registry.backend(backend))


def _model_requirement(request: LaunchRequest, registry: PluginRegistry, form: BundleFormat, chips: int) -> Requirement:
    adapter, variant = parse_model(request.model, registry)
    mode = parse_quant_mode(request.quant) if request.quant else adapter.default_quant
    length = request.seq_length or min(DEFAULT_SEQ_LENGTH, variant.config.seq_length)
    scheme = resolve_quant(mode, adapter.half)
    patched = apply_patches(variant.config, model_patches(adapter, variant.config, length, registry))
    activation = DType.F32 if form is BundleFormat.ONNX else scheme.activation
    nets = adapter.slices(patched, NetPlan(seq_length=length), activation)
    title = f"{adapter.name}:{variant.name}"
    return model_requirement(title, split_nets(nets, chips, request.split), scheme)


def _backend(registry: PluginRegistry, name: str, form: BundleFormat) -> Backend | None:
    if name != AUTO_BACKEND or form is not BundleFormat.BMODEL:
        return choose_backend(registry, name, form)
    able = [backend for backend in bundle_readers(registry, form) if check_availability(backend).available]
    return next((backend for backend in able if any(device.platform for device in backend.devices())), None)


def bundle_readers(registry: PluginRegistry, form: BundleFormat) -> list[Backend]:
    """Backends that know what is in such bundles, available or not; the best first."""
    known = [backend for backend in registry.backends.values() if form in backend.formats]
    return sorted(known, key=lambda backend: -backend.priority)


def _devices(request: LaunchRequest, backend: Backend | None, chips: int) -> Sequence[int]:
    named = request.devices
    if len(named) not in (0, chips):
        raise wrong_device_count("bundle" if request.bundle is not None else "plan", chips, len(named))
    if backend is None:
        return named or tuple(range(chips))
    if named or request.backend != AUTO_BACKEND:
        return choose_devices(backend, named, chips)
    # Nobody asks for this machine: people plan for more chips than they have yet.
    return backend.default_devices(chips)
