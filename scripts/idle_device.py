"""Devices that do nothing, to measure what the host does: one in Python, and one behind the binding of libbmrt."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

import numpy as np

from tpudeploy.contracts.backend import BoundNet, Buffer, MemoryReport, Session, TensorView
from tpudeploy.contracts.bundle import Manifest
from tpudeploy.contracts.dtypes import Array, to_storage
from tpudeploy.contracts.loadable import loadable_of
from tpudeploy.contracts.net import NetKind, NetSpec
from tpudeploy_backends.bmrt.device import Device
from tpudeploy_backends.bmrt.library import LIB_CALLS, RUNTIME_CALLS, Library
from tpudeploy_backends.bmrt.session import BmrtSession


class IdleBuffer(Buffer):
    """Plain memory."""

    def __init__(self, size_bytes: int, chip: int) -> None:
        self.size_bytes = size_bytes
        self.chip = chip
        self.data = np.zeros(size_bytes, dtype=np.uint8)


class IdleNet(BoundNet):
    """Launches nothing, but checks and stores offsets as a backend must."""

    def __init__(self, views: dict[str, TensorView]) -> None:
        self._limits = {name: view.buffer.size_bytes - view.size_bytes for name, view in views.items()}
        self._offsets = dict.fromkeys(views, 0)

    def launch(self) -> None:
        """Do nothing."""

    def move_output(self, name: str, offset_bytes: int) -> None:
        """Store an offset."""
        assert 0 <= offset_bytes <= self._limits[name]
        self._offsets[name] = offset_bytes

    move_input = move_output


class IdleSession(Session):
    """A device that does nothing, in plain memory; its logits are always the same.

    :param logits: (vocab,) float32.
    """

    def __init__(self, manifest: Manifest, logits: Array) -> None:
        self.loaded = loadable_of(manifest)
        self._manifest = manifest
        self._outputs = stored_logits(manifest, logits)
        self._buffers: list[IdleBuffer] = []

    def allocate(self, size_bytes: int, *, chip: int = 0) -> IdleBuffer:
        """New memory."""
        buffer = IdleBuffer(size_bytes, chip)
        if size_bytes in self._outputs:
            buffer.data[:] = self._outputs[size_bytes]
        self._buffers.append(buffer)
        return buffer

    def write_bytes(self, buffer: Buffer, data: Array, offset_bytes: int) -> None:
        """Copy in."""
        assert isinstance(buffer, IdleBuffer)
        buffer.data[offset_bytes : offset_bytes + data.nbytes] = data.reshape(-1).view(np.uint8)

    def read_bytes(self, buffer: Buffer, out: Array, offset_bytes: int) -> None:
        """Copy out."""
        assert isinstance(buffer, IdleBuffer)
        out.reshape(-1).view(np.uint8)[:] = buffer.data[offset_bytes : offset_bytes + out.nbytes]

    def sync(self) -> None:
        """Nothing to wait for."""

    def memory(self) -> MemoryReport:
        """What was allocated."""
        return MemoryReport(weights_bytes=0, buffers_bytes=sum(buffer.size_bytes for buffer in self._buffers))

    def close(self) -> None:
        """Nothing to free."""

    def _bind(self, net: NetSpec, inputs: Mapping[str, TensorView], outputs: Mapping[str, TensorView]) -> BoundNet:
        del net
        return IdleNet({**inputs, **outputs})


class IdleBmrtSession(BmrtSession):
    """The session of libbmrt, with C functions in place of the library's that do nothing: what a launch costs besides.

    Arguments are checked, converted and passed to C as ever. Only what the device would compute is put in by hand.
    """

    def __init__(self, manifest: Manifest, logits: Array) -> None:
        library = cast(Library, SimpleNamespace(lib=_functions(LIB_CALLS), runtime=_functions(RUNTIME_CALLS)))
        self.loaded = loadable_of(manifest)
        self._manifest = manifest
        self._library = library
        self._weights_bytes = 0
        self._released = lambda: None
        self._outputs = stored_logits(manifest, logits)
        self._devices = [Device(library, chip, chip) for chip in range(manifest.nets.chips)]
        for device in self._devices:
            device.start()

    def read_bytes(self, buffer: Buffer, out: Array, offset_bytes: int) -> None:
        """As the library does, with the logits in place of what it leaves there."""
        super().read_bytes(buffer, out, offset_bytes)
        output = self._outputs.get(buffer.size_bytes)
        if output is not None:
            out.reshape(-1).view(np.uint8)[:] = output


def stored_logits(manifest: Manifest, logits: Array) -> dict[int, Array]:
    """By size in bytes: what each output layer's buffer shall hold, so many rows of (a chip's part of) ``logits``."""
    heads = [net.output("logits") for net in manifest.nets.of_kind(NetKind.LM_HEAD)]
    return {
        spec.size_bytes: to_storage(np.broadcast_to(logits[: spec.shape[-1]], spec.shape), spec.dtype)
        .reshape(-1)
        .view(np.uint8)
        for spec in heads
    }


def _functions(calls: Mapping[str, tuple[type | None, tuple[object, ...]]]) -> SimpleNamespace:
    """C functions with the arguments and results of the vendor's; 0 is success for a status, but not for the others."""
    zero, not_zero = ("fegetround", "libm.so.6"), ("__ctype_get_mb_cur_max", "libc.so.6")
    made = {}
    for name, (result, arguments) in calls.items():
        symbol, library = zero if result in (ctypes.c_int, None) else not_zero
        prototype = ctypes.CFUNCTYPE(result, *arguments)  # type: ignore[arg-type]
        made[name] = prototype((symbol, ctypes.CDLL(library)))
    return SimpleNamespace(**made)
