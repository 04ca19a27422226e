"""Responses: JSON, errors, and streams of server-sent events that end with their client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tpudeploy.server.errors import ApiError

_AGAIN_S = 0.5
EVENT_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""A proxy is to pass on each event at once."""


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII: what a client sent, halves of characters included, can be told back to it."""
    return Response(json.dumps(value).encode(), status, headers, media_type="application/json")


def error_response(error: ApiError) -> Response:
    """An error as OpenAI's clients read it."""
    return json_response(error.body(), error.status, error.headers)


def sse(data: Mapping[str, Any], event: str = "") -> str:
    """One server-sent event."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n"


def sse_comment(text: str) -> str:
    """A line that clients ignore."""
    return f": {text}\n\n"


class EventStream(Response):
    """Sends text as it comes, and calls ``on_end`` however that ends; it is closed when the client goes away.

    :param stalled_s: seconds for which the client may take nothing.
    """

    def __init__(
        self, pieces: AsyncIterator[str], *, on_end: Callable[[], None], stalled_s: float, headers: Mapping[str, str]
    ) -> None:
        self.status_code = 200
        self.background = None
        self._pieces = pieces
        self._on_end = on_end
        self._stalled_s = stalled_s
        self.media_type = "text/event-stream"
        self.body = b""
        self.init_headers({**EVENT_STREAM_HEADERS, **headers})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the pieces or the client end."""
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not sending.cancelled():
                sending.result()
        finally:
            self._on_end()
            await cancel_tasks(sending, gone)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        loop, own = asyncio.get_running_loop(), asyncio.current_task()
        async for piece in self._pieces:
            # Not wait_for: up to Python 3.11 it swallows a cancellation that comes just when the sending is done.
            stalled = loop.call_later(self._stalled_s, own.cancel) if own is not None else None
            await send({"type": "http.response.body", "body": piece.encode("utf-8", "replace"), "more_body": True})
            if stalled is not None:
                stalled.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def disconnected(receive: Receive) -> None:
    """Wait until the client goes away; its request has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancel_tasks(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended, in whichever way."""
    for task in tasks:
        while not task.done():  # a task may miss a cancellation that comes at the wrong moment
            task.cancel()
            await asyncio.wait({task}, timeout=_AGAIN_S)
        if not task.cancelled():
            task.exception()  # looked at, so that nobody complains
