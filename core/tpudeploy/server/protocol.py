"""HTTP/1.1 as uvicorn speaks it, but for connections on which no request arrives: uvicorn keeps them for ever."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol


class BoundedProtocol(H11Protocol):
    """Closes a connection whose next request has not begun in time.

    A request has begun when its head is there; how long the body may take is the application's business. A connection
    that says nothing after an answer is closed earlier, by uvicorn.

    :ivar head_s: seconds that a head may take.
    """

    head_s = 30.0

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        super().connection_lost(exc)
        self._stop_timer()

    def handle_events(self) -> None:
        """Take what has arrived."""
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        """An answer was sent as a whole."""
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """The time runs while nothing is answered, from the first moment of that on, whatever trickles in."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.head_s, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bounded_protocol(head_s: float) -> type[BoundedProtocol]:
    """The protocol with another time than its own."""
    return type("BoundedProtocol", (BoundedProtocol,), {"head_s": head_s})
