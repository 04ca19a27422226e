"""Let plugins watch the pipeline."""

from __future__ import annotations

import logging

from tpudeploy.contracts.progress import Progress, StageEvent
from tpudeploy.errors import TpuDeployError
from tpudeploy.plugins import PluginRegistry, call_hook

_log = logging.getLogger("tpudeploy")


def with_observers(progress: Progress, registry: PluginRegistry) -> Progress:
    """``progress`` that also calls the hook ``tpudeploy_stage_finished``; a plugin that fails stops no build."""

    def report(event: StageEvent) -> None:
        progress(event)
        if event.status != "started":
            _notify(event, registry)

    return report


def _notify(event: StageEvent, registry: PluginRegistry) -> None:
    try:
        call_hook(registry, "tpudeploy_stage_finished", event=event)
    except TpuDeployError as error:
        _log.warning("%s", error)
