"""The description of the API: as FastAPI writes it, less what this server answers otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi


def describe(app: FastAPI, models: Sequence[str]) -> dict[str, Any]:
    """OpenAPI's document; FastAPI's 422 is a 400 here, and keys are sent as bearer tokens.

    :param models: names of models that a request may have.
    """
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for schema in schemas.values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"]["enum"] = list(models)
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"key": []}]
    return document
