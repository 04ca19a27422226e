"""HTTP/1.1 as uvicorn speaks it, but for connections on which nothing moves: uvicorn keeps them for ever."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from tpudeploy.server.settings import Limits


class BoundedProtocol(H11Protocol):
    """Closes a connection whose next request has not begun in time, or whose client takes nothing of what it is sent.

    A request has begun when its head is there; how long the body may take is the application's business. A connection
    that says nothing after an answer is closed earlier, by uvicorn.

    :ivar limits: how long a head may take, and how long a client may take nothing.
    """

    limits = Limits()

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._head_timer: asyncio.TimerHandle | None = None
        self._progress_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        super().connection_lost(exc)
        self._stop_head_timer()
        self._stop_progress_timer()

    def handle_events(self) -> None:
        """Take what has arrived."""
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        """An answer was sent as a whole."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """More waits to be sent than should."""
        super().pause_writing()
        self._expect_progress()

    def resume_writing(self) -> None:
        """Most of it was sent."""
        super().resume_writing()
        self._stop_progress_timer()

    def _watch(self) -> None:
        """The time runs while nothing is answered, from the first moment of that on, whatever trickles in."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_head_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.limits.body_s, self._give_up)

    def _give_up(self) -> None:
        self.transport.close()  # waits until everything is sent
        self._expect_progress()

    def _expect_progress(self, left_before: int = 0) -> None:
        """Cut off a client that has taken nothing since the last look."""
        self._stop_progress_timer()
        left = self.transport.get_write_buffer_size()
        if left and left == left_before:
            self.transport.abort()
        elif left:
            self._progress_timer = self.loop.call_later(self.limits.stalled_s, self._expect_progress, left)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_progress_timer(self) -> None:
        if self._progress_timer is not None:
            self._progress_timer.cancel()
            self._progress_timer = None


def bounded_protocol(limits: Limits) -> type[BoundedProtocol]:
    """The protocol with other limits than its own."""
    return type("BoundedProtocol", (BoundedProtocol,), {"limits": limits})
