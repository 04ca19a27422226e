"""Errors as OpenAI's API tells them: ``{"error": {"message", "type", "param", "code"}}`` and a status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tpudeploy.errors import SequenceTooLongError, TpuDeployError, UsageError

_INVALID = "invalid_request_error"
_SERVER = "server_error"


class ApiError(Exception):
    """A request that ends with an error.

    :param message: for the client; never anything that is not its business.
    :param kind: OpenAI's ``type``.
    :param param: the field that is wrong, for example ``messages.0.role``.
    :param headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = _INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object that clients read."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, *, code: str | None = None) -> ApiError:
    """400: the request cannot be understood, or asks for what cannot be had."""
    return ApiError(400, message, param=param, code=code)


def unsupported(message: str, param: str) -> ApiError:
    """400: understood, but this server cannot do it, and the answer would be another without it."""
    return ApiError(400, message, param=param, code="unsupported_parameter")


def too_long(prompt_tokens: int, seq_length: int, param: str) -> ApiError:
    """400: the prompt leaves no room for an answer."""
    return ApiError(
        400,
        f"This model holds {seq_length} tokens of prompt and answer together, but your prompt has {prompt_tokens} "
        "tokens. Shorten it.",
        param=param,
        code="context_length_exceeded",
    )


def not_found(message: str, code: str | None = None, param: str | None = None) -> ApiError:
    """404."""
    return ApiError(404, message, code=code, param=param)


def queue_full(waiting: int, retry_after_s: int) -> ApiError:
    """429: come back later."""
    return ApiError(
        429,
        f"{waiting} requests are waiting already. Try again in {retry_after_s} seconds.",
        kind="requests",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(retry_after_s)},
    )


def unavailable(message: str, code: str, *, retry_after_s: int | None = None) -> ApiError:
    """503: nobody is there to answer."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return ApiError(503, message, kind=_SERVER, code=code, headers=headers)


def timed_out(timeout_s: float) -> ApiError:
    """504. OpenAI's client is told not to try again: it would take as long once more."""
    return ApiError(
        504,
        f"The answer was not finished within {timeout_s:g} seconds.",
        kind=_SERVER,
        code="timeout",
        headers={"x-should-retry": "false"},
    )


def cancelled() -> ApiError:
    """499, as proxies call it: the client went away. Nobody is there to read it."""
    return ApiError(499, "The request was cancelled.", code="cancelled")


def device_failed() -> ApiError:
    """500: the device did not compute; what it said is in the log."""
    return ApiError(500, "The device failed while it computed the answer.", kind=_SERVER, code="device_error")


def internal() -> ApiError:
    """500, without inner details."""
    return ApiError(500, "The server failed. Its log says more.", kind=_SERVER, code="internal_error")


def from_usage(error: TpuDeployError, param: str | None = None) -> ApiError:
    """A deliberate error of the runtime as the client's fault, where it is; otherwise 500."""
    if isinstance(error, SequenceTooLongError):
        return ApiError(400, error.message, param=param, code="context_length_exceeded")
    if isinstance(error, UsageError):
        return invalid(str(error), param)
    return internal()
