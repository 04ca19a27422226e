"""``/health`` and ``/metrics``."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from tpudeploy.server.metrics import CONTENT_TYPE, Metrics
from tpudeploy.server.respond import json_response
from tpudeploy.server.routes.common import ERRORS, Api

_UNHEALTHY = {"description": "No worker answers, or the server stops", "content": {"application/json": {}}}


def state_router(api: Api, metrics: Metrics) -> APIRouter:
    """The router."""
    router = APIRouter()
    health: dict[int | str, dict[str, Any]] = {403: ERRORS[403], 503: _UNHEALTHY}
    figures: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {}}}, 401: ERRORS[401], 403: ERRORS[403], 500: ERRORS[500],
    }  # fmt: skip

    @router.head("/health", include_in_schema=False)  # as some monitors ask
    @router.get("/health", responses=health, response_model=None)
    async def read_health() -> Response:
        """Whether requests are answered; needs no key, and says nothing of what is asked."""
        health = api.service.health()
        dead = sum(bool(worker.problem) for worker in health.workers)
        status = "stopping" if health.stopping else "ready" if health.ready else "unavailable"
        if health.ready and dead:
            status = "degraded"
        found = {"status": status, "workers": len(health.workers) - dead, "dead_workers": dead}
        return json_response(found, 200 if health.ready else 503)

    @router.get("/metrics", responses=figures, response_model=None, response_class=Response)
    async def read_metrics() -> Response:
        """Figures for Prometheus."""
        # Asking the devices may take a moment.
        return Response(await asyncio.to_thread(metrics.render), media_type=CONTENT_TYPE)

    return router
