"""What the endpoints that answer have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from tpudeploy.server.bodies import Body, GeneratingBody, SamplingBody
from tpudeploy.server.completion_form import merged
from tpudeploy.server.errors import invalid, not_found
from tpudeploy.server.exchange import AnswerForm, Exchange, prompt_log, whole
from tpudeploy.server.service import Question, Service
from tpudeploy.server.settings import ServerSettings
from tpudeploy.server.unknown import refuse_what_cannot_be

_NOT_FOR_HEADERS = re.compile(r"[^ -~]")
_LONGEST_HEADER = 500


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Every error of this server."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "Not understood, not supported, or longer than the model holds",
        401: "No API key, or a wrong one",
        403: "A host or origin that may not ask",
        404: "No such model",
        408: "The request did not arrive in time",
        413: "The request is too large",
        429: "Too many requests wait",
        500: "The server or its device failed",
        503: "The server is being stopped, or has no device",
        504: "The answer took too long",
    }.items()
}

ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer as one object; with stream, as server-sent events",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    },
    **ERRORS,
}
"""Responses of the endpoints that answer."""


@dataclass(frozen=True)
class Api:
    """What every router needs."""

    service: Service
    settings: ServerSettings

    def check(self, body: SamplingBody) -> dict[str, str]:
        """Look at the fields that all endpoints share; returns headers of the response.

        :raises ApiError: another model, or a field that cannot be honoured.
        """
        ignored = refuse_what_cannot_be(body)
        self.check_model(body.model)
        return {"X-Ignored-Fields": _header_text(", ".join(ignored))} if ignored else {}

    def check_model(self, name: str) -> None:
        """:raises ApiError: 404."""
        if name not in self.names:
            known = ", ".join(self.names)
            raise not_found(f"The model {name!a:.100} does not exist. This server has: {known}.", "model_not_found")

    @property
    def names(self) -> tuple[str, ...]:
        """What the model may be called, its own name last."""
        return (*self.settings.names, self.service.model.name)

    async def answer(
        self, request: Request, question: Question, form: AnswerForm, *, stream: bool, headers: dict[str, str]
    ) -> Response:
        """Let a question wait for its turn, and respond with its answer. :raises ApiError: there is none."""
        exchange = self._exchange(request, question, form)
        return await (exchange.stream(headers) if stream else whole(request, [exchange], headers))

    async def answer_all(
        self, request: Request, questions: Sequence[Question], forms: Sequence[AnswerForm], headers: dict[str, str]
    ) -> Response:
        """The same for several questions, whose answers make one object."""
        exchanges: list[Exchange] = []
        try:
            for question, form in zip(questions, forms, strict=True):
                exchanges.append(self._exchange(request, question, form))
        except BaseException:
            for exchange in exchanges:
                exchange.cancel()
            raise
        return await whole(request, exchanges, headers, merge=merged)

    def _exchange(self, request: Request, question: Question, form: AnswerForm) -> Exchange:
        return Exchange(request, self.service.submit(question, request.state.client), form, self.settings)

    def log_prompt(self, request: Request, body: Body) -> None:
        """Write what was asked to the log, where that is wanted."""
        if self.settings.log_prompts:
            with suppress(ValueError, RecursionError):  # nested so deeply that it will be refused
                said = {"id": request.state.request_id, **body.model_dump(exclude_unset=True)}
                prompt_log.info("%s", json.dumps(said))


def _header_text(text: str) -> str:
    """What a header can hold: visible ASCII, spaces between it, and not too much of it."""
    return _NOT_FOR_HEADERS.sub(lambda found: ascii(found[0])[1:-1], text)[:_LONGEST_HEADER].strip()


def wants_usage(body: GeneratingBody) -> bool:
    """Whether a stream is to end with what the answer cost. :raises ApiError: there is to be no stream."""
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options is only allowed with stream.", "stream_options")
    return bool(body.stream_options and body.stream_options.include_usage)
