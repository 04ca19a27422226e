"""What stands before every route: who asks, from where, how much, and what is written of it in the log."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tpudeploy.server.errors import ApiError, internal
from tpudeploy.server.metrics import Metrics
from tpudeploy.server.respond import error_response
from tpudeploy.server.settings import ServerSettings

access_log = logging.getLogger("tpudeploy.server.access")
_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_PROTECTED = ("/v1/", "/metrics")
"""What only they get who have a key; the rest is static: the page, the description of the API, and /health."""


class RequestLog:
    """Outermost: gives each request an id, counts it, logs it, and turns what nobody foresaw into a plain 500."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["log"] = {}
        status, began = 0, time.monotonic()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:  # noqa: BLE001 - the last place where it can be told
            _log.exception("request %s failed", request_id)
            if not status:
                await error_response(internal())(scope, receive, sending)
        finally:
            self._tell(scope, status, time.monotonic() - began)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"
        self._metrics.requests.labels(route, str(status or 499)).inc()
        self._metrics.request_s.labels(route).observe(seconds)
        state = scope["state"]
        facts = "".join(f" {name}={value}" for name, value in state["log"].items())
        client = state.get("client") or client_address(scope)
        path = scope["path"].encode("unicode_escape").decode()[:200]
        access_log.info(
            "%s %s %s %s %.3fs id=%s%s", client, scope["method"], path, status or 499, seconds,
            state["request_id"], facts,
        )  # fmt: skip


class Guard:
    """Refuses what a page of another origin has a browser send, and those who have no key.

    A page on the web may point its own name at 127.0.0.1 and so become "same origin" with this server; what it cannot
    do is send another Host header than its own name.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._hosts = {host.lower() for host in settings.allowed_hosts}
        self._origins = set(settings.cors_origins)
        self._keys = [_digest(key.encode()) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        if scope["type"] == "http":
            try:
                headers = Headers(scope=scope)
                self._check_host(headers)
                self._check_origin(scope, headers)
                scope["state"]["client"] = self._client(scope, headers)
            except ApiError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        if self._hosts and _host_name(headers.get("host", "")) not in self._hosts:
            raise ApiError(
                403,
                "This server is not asked for under this name. `tpudeploy serve --allow-host NAME` adds names.",
                code="host_not_allowed",
            )

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or scope["method"] in _SAFE_METHODS or self._origins & {"*", origin}:
            return
        if _netloc(origin) != headers.get("host", "").lower():
            raise ApiError(
                403,
                "Pages of this origin may not ask. `tpudeploy serve --cors-origin ORIGIN` lets them.",
                code="origin_not_allowed",
            )

    def _client(self, scope: Scope, headers: Headers) -> str:
        """Whose turn a request takes: a key's, or else an address's. :raises ApiError: 401."""
        if not self._keys:
            return client_address(scope)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _spellings(key) if scheme.lower() == "bearer" else ()
        # Every key is compared, each in constant time: how long it takes says nothing of any of them.
        own = enumerate(self._keys, 1)
        matches = [index for index, key_digest in own for one in given if hmac.compare_digest(key_digest, one)]
        if matches:
            return f"key-{matches[0]}"
        if not is_protected(scope["path"]):
            return client_address(scope)
        message = "Incorrect API key provided." if key else "You didn't provide an API key: Authorization: Bearer KEY."
        raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


class BodyLimit:
    """Reads the body before anything looks at it: no more of it, and no longer, than is allowed."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._limits = settings.limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        if scope["type"] != "http" or scope["method"] in _SAFE_METHODS:
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        if body is None:  # the client is gone
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        most = self._limits.body_bytes
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        size = int(declared[:20]) if declared.isdecimal() else 0
        if size > most and ("expect" in headers or size > most + _LINGER_BYTES):
            raise _too_large(most)
        try:
            return await asyncio.wait_for(_read_all(receive, most), self._limits.body_s)
        except asyncio.TimeoutError:
            raise ApiError(408, "The request did not arrive in time.", headers=_CLOSE) from None


_CLOSE = {"Connection": "close"}
_LINGER_BYTES = 32 << 20
"""So much beyond the limit is taken and thrown away: a connection that is closed while its client still sends is reset,
and the client never reads why."""


async def _read_all(receive: Receive, most: int) -> bytes | None:
    body, size = bytearray(), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= most:
            body += chunk
        elif size > most + _LINGER_BYTES:
            raise _too_large(most)
        if not message.get("more_body", False):
            break
    if size > most:
        raise _too_large(most)
    return bytes(body)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"The request is larger than {most} bytes.", code="request_too_large", headers=_CLOSE)


def is_protected(path: str) -> bool:
    """Whether a path needs a key, where there are keys."""
    return path.startswith(_PROTECTED) or path.rstrip("/") in ("/v1", "/metrics")


def client_address(scope: Scope) -> str:
    """Where a request comes from."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _host_name(host: str) -> str:
    """``[::1]:8000`` without its port."""
    name = host.lower()
    return re.sub(r":\d*$", "", name) if not name.endswith("]") else name


def _netloc(origin: str) -> str | None:
    """The host and port of an origin; None for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # "http://["
        return None


def _spellings(key: str) -> tuple[bytes, ...]:
    """Digests of a key as a header holds it: programs send letters beyond ASCII in UTF-8, browsers in Latin-1."""
    key = key.strip(" \t")  # nothing else: the last byte of a letter may be what Latin-1 has as a space
    return _digest(key.encode("latin-1", "replace")), _digest(key.encode())


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
