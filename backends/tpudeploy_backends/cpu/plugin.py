"""Registers the backend ``cpu``."""

from __future__ import annotations

from collections.abc import Sequence

from tpudeploy.contracts.backend import Backend
from tpudeploy.hookspecs import hookimpl
from tpudeploy_backends.cpu.backend import CpuBackend


@hookimpl
def tpudeploy_backends() -> Sequence[Backend]:
    """The one backend of this plugin."""
    return [CpuBackend()]
