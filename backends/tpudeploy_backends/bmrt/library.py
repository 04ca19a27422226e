"""Loads libbmlib and libbmrt and declares the calls that tpudeploy makes of them."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_int, c_size_t, c_uint, c_void_p
from pathlib import Path

from tpudeploy.errors import BackendError
from tpudeploy_backends.bmrt.structs import STATUS_NAMES, DeviceMem, DevStat, MiscInfo, Tensor
from tpudeploy_backends.hardware.libsophon import LIBRARY, RUNTIME

LIB_CALLS: dict[str, tuple[type | None, tuple[object, ...]]] = {
    "bm_dev_getcount": (c_int, (POINTER(c_int),)),
    "bm_dev_request": (c_int, (POINTER(c_void_p), c_int)),
    "bm_dev_free": (None, (c_void_p,)),
    "bm_malloc_device_byte": (c_int, (c_void_p, POINTER(DeviceMem), c_uint)),
    "bm_free_device": (None, (c_void_p, DeviceMem)),
    "bm_memcpy_s2d_partial_offset": (c_int, (c_void_p, DeviceMem, c_void_p, c_uint, c_uint)),
    "bm_memcpy_d2s_partial_offset": (c_int, (c_void_p, c_void_p, DeviceMem, c_uint, c_uint)),
    "bm_memcpy_d2d_byte": (c_int, (c_void_p, DeviceMem, c_size_t, DeviceMem, c_size_t, c_size_t)),
    "bm_thread_sync": (c_int, (c_void_p,)),
}
RUNTIME_CALLS: dict[str, tuple[type | None, tuple[object, ...]]] = {
    "bmrt_create": (c_void_p, (c_void_p,)),
    "bmrt_destroy": (None, (c_void_p,)),
    "bmrt_load_bmodel": (c_bool, (c_void_p, c_char_p)),
    "bmrt_get_network_info": (c_void_p, (c_void_p, c_char_p)),
    "bmrt_launch_tensor_ex": (
        c_bool,
        (c_void_p, c_char_p, POINTER(Tensor), c_int, POINTER(Tensor), c_int, c_bool, c_bool),
    ),
}
# What older libraries lack, and what is done without.
_OPTIONAL_CALLS: dict[str, tuple[type | None, tuple[object, ...]]] = {
    "bm_get_stat": (c_int, (c_void_p, POINTER(DevStat))),
    "bm_get_misc_info": (c_int, (c_void_p, POINTER(MiscInfo))),
    "bm_get_chip_temp": (c_int, (c_void_p, POINTER(c_uint))),
    "bm_get_status": (c_int, (c_void_p, POINTER(c_int))),
}


class Library:
    """The two libraries of one folder.

    :param lib: libbmlib: devices and their memory.
    :param runtime: libbmrt: loading and launching nets.
    """

    def __init__(self, folder: Path) -> None:
        """Load them; each process can use one pair.

        :raises BackendError: one is missing or cannot be loaded.
        """
        # libbmlib looks for the simulator's symbols among the global ones.
        self.lib = _load(folder, LIBRARY, ctypes.RTLD_GLOBAL)
        self.runtime = _load(folder, RUNTIME, ctypes.RTLD_LOCAL)
        for library, calls in ((self.lib, LIB_CALLS), (self.runtime, RUNTIME_CALLS)):
            _declare(library, calls)
        for name, call in _OPTIONAL_CALLS.items():
            if hasattr(self.lib, name):
                _declare(self.lib, {name: call})


def _load(folder: Path, names: tuple[str, ...], mode: int) -> ctypes.CDLL:
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        raise BackendError(f"{folder} holds no {names[0]}.", hint="Install libsophon, Sophgo's runtime.")
    try:
        return ctypes.CDLL(str(path), mode=mode)
    except OSError as error:
        raise BackendError(f"cannot load {path}: {error}.") from error


def _declare(library: ctypes.CDLL, calls: dict[str, tuple[type | None, tuple[object, ...]]]) -> None:
    for name, (result, arguments) in calls.items():
        try:
            call = getattr(library, name)
        except AttributeError:
            raise BackendError(
                f"{library._name} has no {name}: it is too old, or no Sophgo library.",
                hint="Install libsophon 0.5.0 or newer.",
            ) from None
        call.restype = result
        call.argtypes = arguments


def status_text(status: int) -> str:
    """What a ``bm_status_t`` means, for people."""
    return STATUS_NAMES.get(status, f"status {status}")
