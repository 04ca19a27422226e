"""One answer on its way to its client, as a stream or as a whole; it is cancelled when the client goes away."""

from __future__ import annotations

import asyncio
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tpudeploy.server.errors import ApiError, internal
from tpudeploy.server.respond import EventStream, cancel_tasks, disconnected, json_response, sse_comment
from tpudeploy.server.service import Answering, End, Event, Piece
from tpudeploy.server.settings import ServerSettings

prompt_log = logging.getLogger("tpudeploy.server.prompts")
CLIENT_CLOSED = 499
"""What proxies log where the client went away; nobody receives it."""


class AnswerForm(ABC):
    """How one endpoint writes answers."""

    @abstractmethod
    def begin(self) -> Iterator[str]:
        """What a stream begins with, as server-sent events; so are all the others."""

    @abstractmethod
    def piece(self, piece: Piece) -> Iterator[str]:
        """A piece of the answer."""

    @abstractmethod
    def end(self, end: End) -> Iterator[str]:
        """What a stream ends with."""

    @abstractmethod
    def failed(self, error: ApiError) -> Iterator[str]:
        """What a stream ends with where the answer could not be finished."""

    @abstractmethod
    def whole(self, pieces: Sequence[Piece], end: End) -> Mapping[str, Any]:
        """The answer as one object."""


class Exchange:
    """One answer and the client that waits for it."""

    def __init__(self, request: Request, answering: Answering, form: AnswerForm, settings: ServerSettings) -> None:
        self._request = request
        self._answering = answering
        self._form = form
        self._settings = settings
        self._events = answering.events()
        self._pieces: list[Piece] = []

    def cancel(self) -> None:
        """Nobody wants the answer any more. Idempotent, and nothing where it has ended."""
        self._answering.cancel()

    async def collect(self) -> Mapping[str, Any]:
        """The answer as one object. :raises ApiError: there is none."""
        async for event in self._events:
            if isinstance(event, End):
                self._note(event)
                return self._form.whole(self._pieces, event)
            self._pieces.append(event)
        raise internal()

    async def stream(self, headers: Mapping[str, str]) -> Response:
        """The answer as a stream. :raises ApiError: there is none, as was soon known."""
        first: asyncio.Future[Event] = asyncio.ensure_future(anext(self._events))
        try:
            # For a while, what goes wrong can still be told by a status.
            if not await _connected_until(self._request, first, self._settings.keep_alive_s):
                self.cancel()
                await cancel_tasks(first)
                return Response(status_code=CLIENT_CLOSED)
            if first.done():
                first.result()
        except BaseException:
            self.cancel()
            await cancel_tasks(first)
            raise
        stalled_s = self._settings.limits.stalled_s
        return EventStream(self._sent(first), on_end=self.cancel, stalled_s=stalled_s, headers=headers)

    async def _sent(self, upcoming: asyncio.Future[Event]) -> AsyncIterator[str]:
        """Server-sent events, and comments while there is nothing to tell."""
        try:
            for text in self._form.begin():
                yield text
            while True:
                done, _ = await asyncio.wait({upcoming}, timeout=self._settings.keep_alive_s)
                if not done:
                    yield sse_comment(f"waiting, {self._answering.position} before this one")
                    continue
                event = upcoming.result()
                for text in self._form.piece(event) if isinstance(event, Piece) else self._form.end(event):
                    yield text
                if isinstance(event, End):
                    self._note(event)
                    return
                self._pieces.append(event)
                upcoming = asyncio.ensure_future(anext(self._events))
        except ApiError as error:
            self._log["error"] = error.code or error.status
            for text in self._form.failed(error):
                yield text
        finally:
            await cancel_tasks(upcoming)

    def _note(self, end: End) -> None:
        usage = end.usage
        self._log.update(
            prompt=usage.prompt_tokens,
            reused=usage.reused_tokens,
            completion=usage.completion_tokens,
            finish=end.finish_reason,
        )
        if self._settings.log_prompts:
            said = {"id": self._request.state.request_id, "answer": "".join(piece.text for piece in self._pieces)}
            said |= {"tool_calls": [call.model_dump(mode="json") for call in end.tool_calls]} if end.tool_calls else {}
            prompt_log.info("%s", json.dumps(said))

    @property
    def _log(self) -> dict[str, Any]:
        """What the access log says of this request."""
        facts: dict[str, Any] = self._request.state.log
        return facts


def _first(answers: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return answers[0]


async def whole(
    request: Request,
    exchanges: Sequence[Exchange],
    headers: Mapping[str, str],
    *,
    merge: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]] = _first,
) -> Response:
    """Answers as one object.

    :param merge: makes one object of several.
    :raises ApiError: there is none.
    """
    work = asyncio.ensure_future(asyncio.gather(*(exchange.collect() for exchange in exchanges)))
    try:
        if not await _connected_until(request, work, None):
            return Response(status_code=CLIENT_CLOSED)
        return json_response(merge(work.result()), headers=headers)
    finally:
        for exchange in exchanges:
            exchange.cancel()
        await cancel_tasks(work)


async def _connected_until(request: Request, work: asyncio.Future[Any], timeout_s: float | None) -> bool:
    """Wait for ``work``, or some time; returns whether the client is still there."""
    gone = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait({work, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return work.done() or not gone.done()
    finally:
        await cancel_tasks(gone)
