"""onnxruntime, imported when it is first needed, with the settings that many sessions over big weights want.

A bundle is dozens of sessions that run in turn. They share one arena for activations: eight layers of width 1024 grew
by 30 MiB in all instead of 27 MiB each. Threads that have nothing to do sleep: left spinning, those of the sessions
that ran before are in the way of the one that runs. (A thread pool for the whole process would do better still, but
with one, onnxruntime refuses every session of other code in the process.)

Weights are shared by putting every net over them into one model; see docs/explanation/cpu-backend.md.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from tpudeploy.errors import BackendError, BundleError

_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_AS_REQUESTED = 1
"""Arenas grow by what is asked for, not by doubling."""
INSTALL_HINT = "Install it with `pip install tpudeploy[cpu]`."


def is_installed() -> bool:
    """Whether onnxruntime can be imported; cheap."""
    return importlib.util.find_spec("onnxruntime") is not None


def import_onnxruntime() -> ModuleType:
    """The module. :raises BackendError: it is not installed, or broken."""
    try:
        import onnxruntime
    except ImportError as error:
        if error.__cause__ is not None and not isinstance(error.__cause__, Exception):
            raise error.__cause__ from None  # Ctrl-C or SIGTERM while it was imported: it makes an ImportError of these
        raise BackendError(f"the backend cpu needs onnxruntime ({error}).", hint=INSTALL_HINT) from error
    module: ModuleType = onnxruntime
    return module


@cache
def runtime_errors() -> tuple[type[Exception], ...]:
    """Everything that onnxruntime raises: its own errors have no common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError)


def create_session(path: Path, threads: int) -> Any:
    """Load one model.

    :raises BundleError: the file or its weights are missing or corrupt.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if _has_shared_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        # The fallback, to another kind of processor, would only print to standard output and fail again.
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except runtime_errors() as error:
        raise BundleError(
            f"{path.name} of the bundle cannot be loaded: {first_line(error)}.",
            hint="The file or its weights may be damaged: make the bundle again.",
        ) from error


@cache
def _has_shared_arena() -> bool:
    """Create the process's arena, once; False where that fails."""
    ort = import_onnxruntime()
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    try:
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"arena_extend_strategy": _AS_REQUESTED}))
    except runtime_errors():
        return False
    return True


def first_line(error: Exception) -> str:
    """The part of an onnxruntime message that a person can use."""
    lines = str(error).strip().splitlines()
    text = _PREFIX.sub("", lines[0]).rstrip(".") if lines else ""
    return text or type(error).__name__
