"""``/v1/models``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from tpudeploy.server.respond import json_response
from tpudeploy.server.routes.common import ERRORS, Api


def models_router(api: Api) -> APIRouter:
    """The router."""
    router = APIRouter()

    def card(name: str) -> dict[str, Any]:
        model = api.service.model
        return {
            "id": name,
            "object": "model",
            "created": model.created,
            "owned_by": "tpudeploy",
            "max_model_len": model.seq_length,
            "quant": model.quant,
            "backend": model.backend,
        }

    @router.get("/v1/models", responses=ERRORS, response_model=None)
    async def list_models() -> Response:
        """The model that is served, by each of its names."""
        return json_response({"object": "list", "data": [card(name) for name in api.names]})

    @router.get("/v1/models/{model:path}", responses=ERRORS, response_model=None)
    async def retrieve_model(model: str) -> Response:
        """The model, by one of its names."""
        api.check_model(model)
        return json_response(card(model))

    return router
