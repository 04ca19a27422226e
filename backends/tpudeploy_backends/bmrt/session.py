"""A bundle of bmodels on one chip or several, in this process: one foreign call a launch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tpudeploy.contracts.backend import (
    BoundNet,
    Buffer,
    MemoryHeap,
    MemoryReport,
    Session,
    TensorView,
    check_move,
)
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.loadable import Loadable
from tpudeploy.contracts.net import NetSpec
from tpudeploy.errors import BackendError
from tpudeploy_backends.bmrt.bmodel import memory_need
from tpudeploy_backends.bmrt.bundle import read_chip
from tpudeploy_backends.bmrt.device import Device, DeviceBuffer
from tpudeploy_backends.bmrt.library import Library
from tpudeploy_backends.bmrt.placement import check_placement
from tpudeploy_backends.bmrt.structs import DATA_TYPES, Shape, Tensor
from tpudeploy_backends.device_choice import check_one_each
from tpudeploy_backends.shielding import shielded


class BmrtBoundNet(BoundNet):
    """A net whose argument arrays were built once; moving a tensor changes one address in them.

    :param dynamic: whether the net may be launched in smaller shapes than it was compiled for.
    """

    def __init__(
        self,
        library: Library,
        device: Device,
        net: NetSpec,
        inputs: Mapping[str, TensorView],
        outputs: Mapping[str, TensorView],
        *,
        dynamic: bool = False,
    ) -> None:
        self._name = net.name
        self._device = device
        self._inputs = {spec.name: inputs[spec.name] for spec in net.inputs}
        self._outputs = {spec.name: outputs[spec.name] for spec in net.outputs}
        self._input_tensors, self._input_places = _tensors(self._inputs, dynamic)
        self._output_tensors, self._output_places = _tensors(self._outputs, dynamic)
        self._launch = library.runtime.bmrt_launch_tensor_ex
        self._arguments = (
            device.runtime,
            ctypes.c_char_p(net.name.encode()),
            self._input_tensors,
            len(inputs),
            self._output_tensors,
            len(outputs),
            True,  # the outputs' memory is ours
            True,  # and so is their layout
        )

    def launch(self) -> None:
        """Start the net."""
        if not self._arguments[0]:
            raise BackendError(f"net {self._name} was launched after its session was closed.")
        if not self._launch(*self._arguments):
            raise self._device.refusal(self._name)

    def move_output(self, name: str, offset_bytes: int) -> None:
        """See :meth:`BoundNet.move_output`."""
        check_move(self._name, self._outputs, name, offset_bytes)
        self._output_places[name].move(offset_bytes)

    def move_input(self, name: str, offset_bytes: int) -> None:
        """See :meth:`BoundNet.move_input`."""
        check_move(self._name, self._inputs, name, offset_bytes)
        self._input_places[name].move(offset_bytes)


class _Place:
    """Where a tensor lies, as the library is told."""

    def __init__(self, tensor: Tensor, view: TensorView, dynamic: bool) -> None:
        buffer = own_buffer(view.buffer)
        tensor.device_mem = buffer.memory
        self._memory = tensor.device_mem  # the array's own, not a copy
        self._base = buffer.memory.device_addr
        # For a dynamic net the runtime asks for memory of its largest shape, and ends the process where there is less.
        self._end_bytes = buffer.size_bytes if dynamic else None
        self._memory.size = view.size_bytes
        self.move(view.offset_bytes)

    def move(self, offset_bytes: int) -> None:
        self._memory.device_addr = self._base + offset_bytes
        if self._end_bytes is not None:
            self._memory.size = self._end_bytes - offset_bytes


def _tensors(views: Mapping[str, TensorView], dynamic: bool) -> tuple[ctypes.Array[Tensor], dict[str, _Place]]:
    array, places = (Tensor * len(views))(), {}
    for tensor, (name, view) in zip(array, views.items(), strict=True):
        tensor.dtype = DATA_TYPES[view.dtype]
        tensor.shape = Shape(len(view.shape), tuple(view.shape))
        places[name] = _Place(tensor, view, dynamic)
    return array, places


def _nothing() -> None:
    """Nothing is to be done."""


def own_buffer(buffer: Buffer) -> DeviceBuffer:
    """:raises BackendError: the buffer is another backend's."""
    if not isinstance(buffer, DeviceBuffer):
        raise BackendError("a buffer of another backend was given to a device.")
    return buffer


class BmrtSession(Session):
    """See :class:`tpudeploy.contracts.backend.Session`.

    :param device_ids: one a chip of the bundle.
    :param capacity_bytes: memory of one device for nets and buffers together, where the library does not tell it.
    :param released: called once everything is freed, or was never taken.
    :raises BundleError: a file is missing or damaged, or a net is not as the manifest says.
    :raises BackendError: no such device, or not enough memory on it: nothing was loaded on any then.
    """

    def __init__(
        self,
        library: Library,
        folder: Path,
        nets: Loadable,
        device_ids: Sequence[int],
        *,
        capacity_bytes: int | None = None,
        released: Callable[[], None] = _nothing,
    ) -> None:
        self.loaded = nets
        self._library = library
        self._devices: list[Device] = []
        self._released = released
        self._weights_bytes = 0
        try:
            self._open(folder, device_ids, capacity_bytes)
        except BaseException:
            self.close()
            raise

    def _open(self, folder: Path, device_ids: Sequence[int], capacity_bytes: int | None) -> None:
        chips = self.loaded.chips
        check_one_each(device_ids, chips)
        files = [read_chip(folder, self.loaded, chip) for chip in range(chips)]
        needs = [memory_need(models.values()) for models in files]
        self._weights_bytes = sum(need.weights_bytes for need in needs)
        with shielded():
            for chip, number in enumerate(device_ids):
                self._devices.append(Device(self._library, number, chip))
        # Every chip is looked at before anything is loaded on one.
        for device, models in zip(self._devices, files, strict=True):
            heaps = _heaps(device, capacity_bytes)
            if heaps:
                check_placement(list(models.values()), heaps, device.id)
        for device, models, need in zip(self._devices, files, needs, strict=True):
            device.start(free_bytes=None if capacity_bytes is None else capacity_bytes - need.total_bytes)
            for name in models:
                device.load(folder / name)
        self._check_loaded()

    def _check_loaded(self) -> None:
        for net in self.loaded.nets:
            if not self._devices[net.chip].has_net(net.name):
                raise BackendError(f"the runtime has not loaded net {net.name}.")

    def _device(self, chip: int) -> Device:
        if not self._devices:
            raise BackendError("the session is closed.")
        if not 0 <= chip < len(self._devices):
            raise BackendError(f"the bundle has no chip {chip}.")
        return self._devices[chip]

    def allocate(self, size_bytes: int, *, chip: int = 0) -> Buffer:
        """See :meth:`Session.allocate`."""
        return self._device(chip).allocate(size_bytes)

    def write_bytes(self, buffer: Buffer, data: Array, offset_bytes: int) -> None:
        """See :meth:`Session.write_bytes`."""
        self._device(buffer.chip).write(own_buffer(buffer), data, offset_bytes)

    def read_bytes(self, buffer: Buffer, out: Array, offset_bytes: int) -> None:
        """See :meth:`Session.read_bytes`."""
        self._device(buffer.chip).read(own_buffer(buffer), out, offset_bytes)

    def sync(self) -> None:
        """See :meth:`Session.sync`."""
        self._device(0)
        for device in self._devices:
            device.sync()

    def memory(self) -> MemoryReport:
        """See :meth:`Session.memory`."""
        buffers = sum(device.buffers_bytes for device in self._devices)
        return MemoryReport(weights_bytes=self._weights_bytes if self._devices else 0, buffers_bytes=buffers)

    def close(self) -> None:
        """See :meth:`Session.close`."""
        with shielded():
            while self._devices:
                self._devices.pop().close()
            released, self._released = self._released, _nothing
            released()

    def _copy(self, source: TensorView, target: TensorView) -> None:
        device = self._device(source.buffer.chip)
        begin, end = own_buffer(source.buffer), own_buffer(target.buffer)
        device.copy(begin, source.offset_bytes, end, target.offset_bytes, source.size_bytes)

    def _bind(self, net: NetSpec, inputs: Mapping[str, TensorView], outputs: Mapping[str, TensorView]) -> BoundNet:
        dynamic = net.name in self.loaded.dynamic
        return BmrtBoundNet(self._library, self._device(net.chip), net, inputs, outputs, dynamic=dynamic)


def _heaps(device: Device, capacity_bytes: int | None) -> tuple[MemoryHeap, ...]:
    if capacity_bytes is not None:
        return (MemoryHeap(name="memory", total_bytes=capacity_bytes, free_bytes=capacity_bytes),)
    return device.state().heaps
