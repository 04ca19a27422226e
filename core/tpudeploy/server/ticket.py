"""A question that waits or is being answered, as the event loop sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from tpudeploy.server import errors
from tpudeploy.server.job import Job
from tpudeploy.server.service import Answering, End, Event, Question


class Ticket(Answering):
    """One answer; used from one event loop.

    :param timeout_s: from now to the end of the answer.
    :param give_up: called once, where it ends before its time.
    """

    def __init__(
        self,
        question: Question,
        client: str,
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
        give_up: Callable[[Ticket], None],
        position: Callable[[Ticket], int],
    ) -> None:
        self.question = question
        self.client = client
        self.job = Job(question, self._emit)
        self.waited_s = 0.0
        self._arrived = time.monotonic()
        self._began: float | None = None
        self._loop = loop
        self._give_up = give_up
        self._position = position
        self._events: asyncio.Queue[Event | errors.ApiError] = asyncio.Queue()
        self._ended = False
        self._timer = loop.call_later(timeout_s, lambda: self.fail(errors.timed_out(timeout_s)))

    @property
    def position(self) -> int:
        """See :attr:`Answering.position`."""
        return 0 if self._began is not None else self._position(self)

    @property
    def running_s(self) -> float:
        """Seconds since it was begun."""
        return time.monotonic() - (self._began or self._arrived)

    def begin(self) -> float:
        """A worker takes it; returns the seconds that it waited."""
        self._began = time.monotonic()
        self.waited_s = self._began - self._arrived
        return self.waited_s

    async def events(self) -> AsyncIterator[Event]:
        """See :meth:`Answering.events`."""
        while True:
            event = await self._events.get()
            if isinstance(event, errors.ApiError):
                raise event
            yield event
            if isinstance(event, End):
                return

    def cancel(self) -> None:
        """See :meth:`Answering.cancel`."""
        # Nobody is there to read it; but whoever still waits for events must not wait for ever.
        self.fail(errors.cancelled())

    def fail(self, error: errors.ApiError) -> None:
        """End it with an error, unless it has ended."""
        if not self._ended:
            self._end()
            self._events.put_nowait(error)

    def _emit(self, event: Event) -> None:
        """From a worker's thread."""
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._take, event)

    def _take(self, event: Event) -> None:
        if self._ended:
            return
        self._events.put_nowait(event)
        if isinstance(event, End):
            self._ended = True
            self._timer.cancel()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._timer.cancel()
            self._give_up(self)
