"""``/health`` and ``/metrics``."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from tpudeploy.server.metrics import CONTENT_TYPE, Metrics
from tpudeploy.server.respond import json_response
from tpudeploy.server.routes.common import Api


def state_router(api: Api, metrics: Metrics) -> APIRouter:
    """The router."""
    router = APIRouter()
    description: dict[int | str, dict[str, Any]] = {503: {"description": "No worker answers, or the server stops"}}

    @router.get("/health", responses=description, response_model=None)
    async def read_health() -> Response:
        """Whether requests are answered; needs no key, and says nothing of what is asked."""
        health = api.service.health()
        dead = sum(bool(worker.problem) for worker in health.workers)
        status = "stopping" if health.stopping else "ready" if health.ready else "unavailable"
        if health.ready and dead:
            status = "degraded"
        found = {"status": status, "workers": len(health.workers) - dead, "dead_workers": dead}
        return json_response(found, 200 if health.ready else 503)

    @router.get("/metrics", response_model=None)
    async def read_metrics() -> Response:
        """Figures for Prometheus."""
        # Asking the devices may take a moment.
        return Response(await asyncio.to_thread(metrics.render), media_type=CONTENT_TYPE)

    return router
