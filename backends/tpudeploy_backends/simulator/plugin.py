"""Registers the backend ``simulator``."""

from __future__ import annotations

from collections.abc import Sequence

from tpudeploy.contracts.backend import Backend
from tpudeploy.hookspecs import hookimpl
from tpudeploy_backends.simulator.backend import SimulatorBackend


@hookimpl
def tpudeploy_backends() -> Sequence[Backend]:
    """The one backend of this plugin."""
    return [SimulatorBackend()]
