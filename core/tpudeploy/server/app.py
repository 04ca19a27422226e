"""The application: routes, and what stands before them. It knows a :class:`Service`, and no model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from tpudeploy import __version__
from tpudeploy.server.errors import ApiError, invalid, not_found
from tpudeploy.server.metrics import Metrics
from tpudeploy.server.middleware import BodyLimit, Guard, RequestLog
from tpudeploy.server.openapi import describe
from tpudeploy.server.page_routes import page_routes
from tpudeploy.server.respond import error_response
from tpudeploy.server.routes.chat import chat_router
from tpudeploy.server.routes.common import Api
from tpudeploy.server.routes.completions import completions_router
from tpudeploy.server.routes.models import models_router
from tpudeploy.server.routes.responses import responses_router
from tpudeploy.server.routes.state import state_router
from tpudeploy.server.service import Service
from tpudeploy.server.settings import ServerSettings

_UNION = re.compile(r"^(str|int|float|bool|list\[.*|dict\[.*|function-.*|constrained-.*)$")
"""Parts of a pydantic location that name an alternative and not a field."""
_SHORTEST = 300


def create_app(
    service: Service,
    settings: ServerSettings,
    metrics: Metrics | None = None,
) -> FastAPI:
    """The application, for uvicorn, Ray Serve or a test to run.

    :param metrics: what ``/metrics`` tells; the service may count in the same.
    """
    metrics = metrics or Metrics()
    api = Api(service, settings)
    app = FastAPI(
        title="tpudeploy",
        version=__version__,
        description="The part of OpenAI's API that a model on a TPU can honour.",
        redirect_slashes=False,  # to http, also behind a proxy that speaks https
        docs_url=None,  # they load scripts from another host
        redoc_url=None,
        exception_handlers=_HANDLERS,
        middleware=_middleware(settings, metrics),
    )
    for router in (chat_router, completions_router, responses_router, models_router):
        app.include_router(router(api))
    app.include_router(state_router(api, metrics))
    app.router.routes.extend(page_routes())
    description = cache(lambda: describe(app, api.names))
    app.openapi = description  # type: ignore[method-assign]
    return app


def _middleware(settings: ServerSettings, metrics: Metrics) -> list[Middleware]:
    """Outermost first."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(settings.cors_origins),
        allow_methods=["GET", "POST", "OPTIONS"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )
    return [
        Middleware(RequestLog, metrics=metrics),
        *([cors] if settings.cors_origins else []),
        Middleware(Guard, settings=settings),
        Middleware(BodyLimit, settings=settings),
    ]


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - what it is registered for
    request.state.log["error"] = error.code or error.status
    return error_response(error)


async def _invalid_body(request: Request, error: Exception) -> Response:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    return await _api_error(request, _described(found))


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: unknown paths, wrong methods, bodies that are no JSON."""
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    if error.status_code == 404:
        return await _api_error(request, not_found(f"Unknown request URL: {request.method} {request.url.path:.200}."))
    return await _api_error(request, ApiError(error.status_code, str(error.detail), headers=error.headers))


async def _too_deep(request: Request, error: Exception) -> Response:
    return await _api_error(request, invalid("The body of the request is nested too deeply."))


def _described(found: Sequence[Any]) -> ApiError:
    """The first thing that is wrong with a body, in a sentence."""
    if not found:
        return invalid("The request is not valid.")
    first = found[0]
    if first["type"] == "json_invalid":
        return invalid("The body of the request is not valid JSON.")
    where = [str(part) for part in first["loc"] if part != "body" and not _UNION.match(str(part))]
    param = ".".join(where)[:_SHORTEST]
    if not param:
        return invalid("The body of the request must be a JSON object, sent as application/json.")
    if first["type"] == "missing":
        return invalid(f"You must provide {param}.", param, code="missing_required_parameter")
    return invalid(f"{param}: {first['msg']}."[:_SHORTEST], param)


_HANDLERS: dict[int | type[Exception], Any] = {
    ApiError: _api_error,
    RequestValidationError: _invalid_body,
    HTTPException: _http_error,
    RecursionError: _too_deep,
}
