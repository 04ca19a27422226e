"""What the user's process and the simulator's say to each other: a JSON request, a JSON answer, and bytes beside them.

A request or answer that says ``"bytes": true`` is followed by one message of raw bytes.
"""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from typing import Any

from tpudeploy import errors
from tpudeploy.contracts.dtypes import Array
from tpudeploy.errors import BackendError, TpuDeployError

Message = dict[str, Any]
ENCODING = "utf-8"


def send(connection: Connection, message: Message, payload: Array | None = None) -> None:
    """Send a message, and the bytes of a contiguous array with it."""
    message = message | {"bytes": payload is not None}
    connection.send_bytes(json.dumps(message).encode(ENCODING))
    if payload is not None:
        connection.send_bytes(payload.reshape(-1).view("u1").data)


def receive(connection: Connection) -> tuple[Message, bytes]:
    """Receive a message and the bytes that follow it, if any."""
    message: Message = json.loads(connection.recv_bytes().decode(ENCODING))
    return message, connection.recv_bytes() if message.pop("bytes") else b""


def error_message(error: Exception) -> Message:
    """An answer that says that a request failed."""
    if isinstance(error, TpuDeployError):
        return {"error": type(error).__name__, "text": error.message, "hint": error.hint}
    return {"error": "BackendError", "text": f"the simulator's process failed: {error!r}.", "hint": ""}


def raise_error(message: Message) -> None:
    """:raises TpuDeployError: the error that an answer carries, if it carries one."""
    if "error" not in message:
        return
    kind = getattr(errors, message["error"], BackendError)
    raise kind(message["text"], hint=message["hint"])
