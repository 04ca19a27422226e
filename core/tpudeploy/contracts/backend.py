"""The backend contract: load a bundle, launch its nets by name on device buffers, copy in and out, report, close.

A :class:`Backend` describes one way to run nets and opens a :class:`Session` on a bundle. A session hands out
:class:`Buffer` objects and binds nets to :class:`TensorView` parts of them once; a launch then costs one call. The
base class checks every binding in Python (names, shapes, element types, bounds, devices) before a library sees it,
because vendor runtimes answer a wrong argument with a crash or a silent overrun.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
from typing_extensions import Self

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.bundle import BundleFormat, Manifest
from tpudeploy.contracts.dtypes import Array, DType, from_storage, to_storage
from tpudeploy.contracts.finding import Finding
from tpudeploy.contracts.loadable import Loadable, loadable_of
from tpudeploy.contracts.net import NetSpec, TensorSpec
from tpudeploy.errors import BackendError


class MemoryHeap(Value):
    """A part of a device's memory; one allocation lies within one heap.

    :param name: as the vendor's tools call it, for example ``npu``.
    """

    name: str
    total_bytes: int
    free_bytes: int


class DeviceInfo(Value):
    """One device that a backend can use; what it does not tell is None or empty.

    :param memory_bytes: its memory.
    :param used_bytes: how much of it is in use, by any program.
    :param platform: how it is reached: ``"PCIe"``, ``"SoC"``.
    :param heaps: its memory, heap by heap, in the order in which they are filled.
    :param temperature_celsius: of the chip.
    :param utilization_percent: how busy it is.
    :param holder: number of the tpudeploy process that uses it.
    :param fault: why it cannot be used as it is, for people.
    """

    id: int
    name: str
    memory_bytes: int | None = None
    used_bytes: int | None = None
    platform: str = ""
    heaps: tuple[MemoryHeap, ...] = ()
    temperature_celsius: int | None = None
    utilization_percent: int | None = None
    holder: int | None = None
    fault: str = ""

    @property
    def free_bytes(self) -> int | None:
        """Memory that is left, or None where that is not known."""
        if self.heaps:
            return sum(heap.free_bytes for heap in self.heaps)
        return None if self.memory_bytes is None else self.memory_bytes - (self.used_bytes or 0)


class NetMemory(Value):
    """Device memory that the nets of one chip take, in bytes, before any buffer is allocated.

    :param instructions_bytes: what the chip executes.
    :param scratch_bytes: what the nets compute in.
    """

    weights_bytes: int
    instructions_bytes: int = 0
    scratch_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.instructions_bytes + self.scratch_bytes


class Availability(Value):
    """Whether a backend can run here, and what to do where it cannot.

    :param absent: what it drives is not part of this machine: nothing is wrong, and nothing has to be done.
    """

    available: bool
    reason: str = ""
    remedy: str = ""
    absent: bool = False


class MemoryReport(Value):
    """Device memory that one session holds, in bytes."""

    weights_bytes: int
    buffers_bytes: int


class Buffer(ABC):
    """A piece of device memory of ``size_bytes`` bytes on chip ``chip``; freed with its session."""

    size_bytes: int
    chip: int


@dataclass(frozen=True)
class TensorView:
    """A tensor that lies somewhere in a buffer.

    :param offset_bytes: where in the buffer it begins.
    """

    buffer: Buffer
    shape: tuple[int, ...]
    dtype: DType
    offset_bytes: int = 0

    @cached_property  # asked for at every move
    def size_bytes(self) -> int:
        """Bytes that it covers."""
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize_bytes


class BoundNet(ABC):
    """A net with its arguments built: launching it costs one call."""

    @abstractmethod
    def launch(self) -> None:
        """Start the net; it has finished after :meth:`Session.sync`. :raises BackendError: the launch failed."""

    @abstractmethod
    def move_output(self, name: str, offset_bytes: int) -> None:
        """Let output ``name`` begin elsewhere in its buffer: how present K and V go straight into the cache.

        :raises BackendError: it would not fit there.
        """

    @abstractmethod
    def move_input(self, name: str, offset_bytes: int) -> None:
        """Let input ``name`` begin elsewhere in its buffer: how the output head reads a chunk's last token.

        :raises BackendError: it would not fit there.
        """


class Session(ABC):
    """Loaded nets on their devices. A context manager; closing twice does nothing."""

    loaded: Loadable
    """What was loaded; set by the backend."""
    _manifest: Manifest | None = None
    _shapes: dict[str, list[NetSpec]] | None = None

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest. :raises BackendError: what was loaded is no bundle."""
        if self._manifest is None:
            raise BackendError("what was loaded is no bundle: it has no manifest.")
        return self._manifest

    @abstractmethod
    def allocate(self, size_bytes: int, *, chip: int = 0) -> Buffer:
        """New zeroed device memory. :raises BackendError: the device has no room."""

    @abstractmethod
    def write_bytes(self, buffer: Buffer, data: Array, offset_bytes: int) -> None:
        """Copy a contiguous host array into a buffer; bounds were checked."""

    @abstractmethod
    def read_bytes(self, buffer: Buffer, out: Array, offset_bytes: int) -> None:
        """Copy from a buffer into a contiguous host array; bounds were checked, nets were waited for."""

    @abstractmethod
    def sync(self) -> None:
        """Wait for every launched net. :raises BackendError: one of them failed."""

    @abstractmethod
    def memory(self) -> MemoryReport:
        """Device memory held now."""

    @abstractmethod
    def close(self) -> None:
        """Free everything; the session is unusable afterwards. Idempotent."""

    @abstractmethod
    def _bind(self, net: NetSpec, inputs: Mapping[str, TensorView], outputs: Mapping[str, TensorView]) -> BoundNet:
        """Build the arguments of a net whose views were all checked."""

    def tensor(self, spec: TensorSpec, *, chip: int = 0) -> TensorView:
        """Allocate a buffer of just the size of ``spec``."""
        return TensorView(self.allocate(spec.size_bytes, chip=chip), spec.shape, spec.dtype)

    def copy(self, source: TensorView, target: TensorView) -> None:
        """Copy between places of one chip, after every net that was launched; a backend may do it on the device.

        :param target: covers as many bytes as ``source``.
        :raises BackendError: other sizes, other chips, or outside of a buffer.
        """
        _check_bounds("copied tensor", source)
        _check_bounds("copied tensor", target)
        if source.size_bytes != target.size_bytes or source.buffer.chip != target.buffer.chip:
            raise BackendError(f"cannot copy {source.size_bytes} bytes to a tensor of {target.size_bytes} bytes.")
        self._copy(source, target)

    def _copy(self, source: TensorView, target: TensorView) -> None:
        """By way of the host; sizes were checked."""
        self.sync()
        data = np.empty(source.size_bytes, dtype=np.uint8)
        self.read_bytes(source.buffer, data, source.offset_bytes)
        self.write_bytes(target.buffer, data, target.offset_bytes)

    def write(self, view: TensorView, values: Array) -> None:
        """Copy numbers to the device, converted to the view's element type.

        :param values: an array of the view's shape.
        :raises BackendError: another shape, or outside of the buffer.
        """
        if tuple(values.shape) != view.shape:
            raise BackendError(f"cannot write an array of shape {list(values.shape)} to a tensor {list(view.shape)}.")
        _check_bounds("written tensor", view)
        self.write_bytes(view.buffer, to_storage(values, view.dtype), view.offset_bytes)

    def read(self, view: TensorView) -> Array:
        """Wait for the device and copy a tensor to the host; floats come back as float32."""
        _check_bounds("read tensor", view)
        self.sync()
        out = np.empty(view.shape, dtype=view.dtype.numpy)
        self.read_bytes(view.buffer, out, view.offset_bytes)
        return from_storage(out, view.dtype)

    def bind(self, name: str, inputs: Mapping[str, TensorView], outputs: Mapping[str, TensorView]) -> BoundNet:
        """Prepare a net for launching, every argument checked.

        :raises BackendError: an unknown net; a missing, surplus or misplaced tensor; a wrong shape or element type.
        """
        net = self._in_shape(name, inputs, outputs)
        _check_views(net, "input", net.inputs, inputs)
        _check_views(net, "output", net.outputs, outputs)
        return self._bind(net, inputs, outputs)

    def _in_shape(self, name: str, inputs: Mapping[str, TensorView], outputs: Mapping[str, TensorView]) -> NetSpec:
        """The net in the shape of its inputs; where it has no such shape, in its first one."""
        if self._shapes is None:  # looked up once a net of a model, which may have hundreds
            self._shapes = {}
            for spec in self.loaded.nets:
                self._shapes.setdefault(spec.name, []).append(spec)
        nets = self._shapes.get(name)
        if not nets:
            raise BackendError(f"no net {name!r} was loaded.")
        for net in nets:
            if all(spec.name in inputs and inputs[spec.name].shape == spec.shape for spec in net.inputs):
                return net
        if name not in self.loaded.dynamic:
            return nets[0]
        update = {
            "inputs": tuple(_as_given(spec, inputs) for spec in nets[0].inputs),
            "outputs": tuple(_as_given(spec, outputs) for spec in nets[0].outputs),
        }
        return nets[0].model_copy(update=update)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Backend(ABC):
    """One way to run nets. Subclass it, and register it with ``tpudeploy_backends``."""

    name: str
    """What users type after ``--backend``."""
    summary: str
    """One sentence."""
    formats: frozenset[BundleFormat]
    """The bundle formats that it runs."""
    priority: int = 0
    """``--backend auto`` takes the available backend of the highest priority; real chips before simulations."""

    @abstractmethod
    def availability(self) -> Availability:
        """Whether it can run here; cheap, and never raises."""

    @abstractmethod
    def devices(self) -> Sequence[DeviceInfo]:
        """The devices there are, with their memory."""

    def default_devices(self, chips: int) -> tuple[int, ...]:
        """Which devices to take for a model on ``chips`` chips where the user names none."""
        return tuple(range(chips))

    def check_devices(self, devices: Sequence[int], chips: int) -> None:  # noqa: B027 - others' backends need none
        """Refuse devices that :meth:`load` would refuse; asked before a model is built, and opens nothing.

        :raises BackendError: no such device, not one a chip, or more chips than the backend drives.
        """

    @abstractmethod
    def load(self, folder: Path, nets: Loadable, *, devices: Sequence[int] = (0,)) -> Session:
        """Load nets; the caller checked that files of a bundle are as its manifest says.

        :param folder: where the files lie.
        :param devices: device ids, one a chip.
        :raises BackendError: not available, no such device, or no memory.
        :raises BundleError: a file that is missing or damaged, or a net that is not as described.
        """

    def memory_needed(self, folder: Path, nets: Loadable) -> Sequence[NetMemory] | None:
        """Device memory that :meth:`load` will take, one entry a chip, without loading anything; None: not known.

        :raises BundleError: a file that is missing or damaged.
        """
        return None

    def findings(self) -> Sequence[Finding]:
        """What ``tpudeploy doctor`` should say of the software that this backend stands on; cheap, never raises."""
        return ()

    def describe(self, path: Path) -> Loadable:
        """What a compiled file that others made says of itself; ``load`` takes the answer and the file's folder.

        :raises BundleError: missing, damaged, or not for this kind of chip.
        :raises BackendError: this backend runs bundles only.
        """
        raise BackendError(f"the backend {self.name} cannot run {path.name}: it runs tpudeploy's own bundles only.")

    def open(self, folder: Path, manifest: Manifest, *, devices: Sequence[int] = (0,)) -> Session:
        """Load a bundle whose files were checked against their digests; see :meth:`load`."""
        session = self.load(folder, loadable_of(manifest), devices=devices)
        session._manifest = manifest
        return session


def _as_given(spec: TensorSpec, views: Mapping[str, TensorView]) -> TensorSpec:
    """A tensor of a dynamic net in the shape of its view, where that is no larger than the net was compiled for."""
    shape = views[spec.name].shape if spec.name in views else spec.shape
    fits = len(shape) == len(spec.shape) and all(0 < new <= old for new, old in zip(shape, spec.shape, strict=True))
    return spec.model_copy(update={"shape": shape}) if fits else spec


def _check_views(net: NetSpec, what: str, specs: Sequence[TensorSpec], views: Mapping[str, TensorView]) -> None:
    names = {spec.name for spec in specs}
    if names != set(views):
        raise BackendError(f"net {net.name} takes the {what}s {sorted(names)}, but {sorted(views)} were given.")
    for spec in specs:
        view = views[spec.name]
        if view.shape != spec.shape or view.dtype is not spec.dtype:
            raise BackendError(
                f"net {net.name}: {what} {spec} was given a tensor {view.dtype.value}{list(view.shape)}."
            )
        if view.buffer.chip != net.chip:
            raise BackendError(f"net {net.name} runs on chip {net.chip}, its {what} {spec.name} does not lie there.")
        _check_bounds(f"net {net.name}: {what} {spec.name}", view)


def check_move(net: str, views: Mapping[str, TensorView], name: str, offset_bytes: int) -> TensorView:
    """Check what :meth:`BoundNet.move_input` and :meth:`BoundNet.move_output` are asked for; every backend calls it.

    :param views: the net's inputs, or its outputs, as they were bound.
    :returns: the view called ``name``, which is to begin at ``offset_bytes``.
    :raises BackendError: there is no such tensor, or it would not fit there.
    """
    view = views.get(name)
    if view is None:
        raise BackendError(f"net {net} has no tensor {name!r} among {sorted(views)}.")
    if offset_bytes % view.dtype.itemsize_bytes or not 0 <= offset_bytes <= view.buffer.size_bytes - view.size_bytes:
        _check_bounds(f"net {net}: {name}", replace(view, offset_bytes=offset_bytes))
    return view


def _check_bounds(what: str, view: TensorView) -> None:
    if view.offset_bytes % view.dtype.itemsize_bytes:
        raise BackendError(f"{what} cannot begin at byte {view.offset_bytes}: its elements would not be aligned.")
    end = view.offset_bytes + view.size_bytes
    if view.offset_bytes < 0 or end > view.buffer.size_bytes:
        raise BackendError(
            f"{what} would cover bytes {view.offset_bytes} to {end} of a buffer of {view.buffer.size_bytes} bytes."
        )
