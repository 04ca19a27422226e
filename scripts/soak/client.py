"""Sends requests as clients do, patient and impatient ones, and says what is wrong with what comes back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from typing_extensions import Self

from soak.answers import Said, StreamReader, read_whole
from soak.requests import Request

PATIENCE_S = 240.0
"""What takes longer is stuck."""
LEFT = "left"
_ERROR_FIELDS = {"message", "type", "param", "code"}


@dataclass
class Result:
    """What came of a request.

    :ivar outcome: a status, :data:`LEFT`, or what else became of it.
    :ivar problem: what is wrong with that; empty where nothing is.
    :ivar first_s: seconds until the first text of a stream.
    :ivar began: on the clock of :func:`time.monotonic`.
    """

    request: Request
    client: str
    began: float
    outcome: str = ""
    problem: str = ""
    first_s: float | None = None
    whole_s: float = 0.0
    said: Said | None = None


class Client:
    """A client with a key of its own; an asynchronous context manager.

    :param references: the answer of each word of :attr:`Request.same`; the first to come is the one.
    """

    def __init__(self, name: str, url: str, key: str, references: dict[str, Any]) -> None:
        self.name = name
        self._url = url
        self._key = key
        self._references = references
        self._ways = {
            "whole": self._whole,
            "stream": self._stream,
            "leave": self._stream,
            "abandon": self._abandon,
            "half": self._half,
        }

    async def __aenter__(self) -> Self:
        self._http = self._connect()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.aclose()

    def _connect(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=8)
        # Patience is measured over the whole of a request.
        return httpx.AsyncClient(base_url=self._url, limits=limits, timeout=None, trust_env=False)  # noqa: S113

    async def forget_connections(self) -> None:
        """Close what is kept open for later."""
        await self._http.aclose()
        self._http = self._connect()

    async def send(self, request: Request) -> Result:
        """Send a request and judge what becomes of it."""
        result = Result(request, self.name, time.monotonic())
        try:
            await asyncio.wait_for(self._ways[request.way](request, result), PATIENCE_S)
        except asyncio.TimeoutError:
            result.outcome, result.problem = "stuck", f"nothing for {PATIENCE_S:g} s"
        except httpx.TransportError as error:
            result.outcome, result.problem = "cut off", f"{type(error).__name__}: {error}"
        except (ValueError, KeyError, IndexError, TypeError) as error:
            result.problem = f"cannot be read: {type(error).__name__}: {error}"
        result.whole_s = time.monotonic() - result.began
        return result

    async def metrics(self) -> str:
        """The text of ``/metrics``."""
        response = await self._http.get("/metrics", headers=self._headers())
        response.raise_for_status()
        return response.text

    async def model(self) -> Mapping[str, Any]:
        """What ``/v1/models`` says of the model."""
        response = await self._http.get("/v1/models", headers=self._headers())
        response.raise_for_status()
        found: Mapping[str, Any] = response.json()["data"][-1]
        return found

    def _headers(self, request: Request | None = None) -> dict[str, str]:
        with_key = self._key and (request is None or request.with_key)
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if with_key else {})

    def _build(self, request: Request) -> httpx.Request:
        method = "GET" if request.body is None else "POST"
        return self._http.build_request(method, request.path, content=request.content, headers=self._headers(request))

    async def _whole(self, request: Request, result: Result) -> None:
        response = await self._http.send(self._build(request))
        self._judge_status(result, response)
        if response.status_code == 200 and request.answers:
            self._judge_answer(result, read_whole(request.path, response.json()))

    async def _stream(self, request: Request, result: Result) -> None:
        response = await self._http.send(self._build(request), stream=True)
        try:
            if response.status_code != 200:
                await response.aread()
                self._judge_status(result, response)
                return
            result.outcome = "200"
            await self._read_stream(request, result, response)
        finally:
            await response.aclose()  # closes the connection, unless everything was read

    async def _read_stream(self, request: Request, result: Result, response: httpx.Response) -> None:
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            result.problem = f"a stream of the type {response.headers.get('content-type')}"
        reader = StreamReader()
        async for line in response.aiter_lines():
            reader.read(line)
            if reader.pieces and result.first_s is None:
                result.first_s = time.monotonic() - result.began
            if request.way == "leave" and reader.pieces >= request.after:
                result.outcome = LEFT
                return
        self._judge_answer(result, reader.said)

    async def _abandon(self, request: Request, result: Result) -> None:
        try:
            await asyncio.wait_for(self._http.send(self._build(request)), request.after / 1000)
            result.outcome = "200"
        except asyncio.TimeoutError:
            result.outcome = LEFT

    async def _half(self, request: Request, result: Result) -> None:
        address = urlsplit(self._url)
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        head = f"POST {request.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {self._key}\r\nContent-Length: {len(request.content)}\r\n\r\n"
        writer.write(head.encode() + request.content[: len(request.content) // 2])
        await writer.drain()
        writer.transport.abort()
        result.outcome = LEFT

    def _judge_status(self, result: Result, response: httpx.Response) -> None:
        request, status = result.request, response.status_code
        result.outcome = str(status)
        if status == 200 == request.status:
            return
        if status != request.status and not (status == 429 and request.answers):
            result.problem = f"status {status}, not {request.status}: {response.text[:300]}"
            return
        error = json.loads(response.text)["error"]
        if set(error) != _ERROR_FIELDS or not error["message"]:
            result.problem = f"no error object: {response.text[:300]}"
        if status == 429 and not response.headers.get("retry-after", "").isdecimal():
            result.problem = "429 without Retry-After"
        if status == request.status and request.code and error["code"] != request.code:
            result.problem = f"the code is {error['code']}, not {request.code}"

    def _judge_answer(self, result: Result, said: Said) -> None:
        request, result.said = result.request, said
        if said.error is not None:
            # A stream that has waited long has begun already when it must make room.
            busy = said.error["code"] == "rate_limit_exceeded"
            result.outcome = f"error in the stream: {said.error['code']}"
            result.problem = "" if busy else str(said.error)
        elif not said.ended:
            result.problem = "the stream has no end"
        elif request.tokens is not None and said.tokens != request.tokens:
            result.problem = f"{said.tokens} tokens, not {request.tokens}"
        elif request.same and self._references.setdefault(request.same, said.value) != said.value:
            result.problem = f"another answer: {said.value!r}, not {self._references[request.same]!r}"
