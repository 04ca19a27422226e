"""Runs the application until it is told to stop.

The first SIGTERM or SIGINT lets what is being answered finish, for a while, and turns away what comes; a second one
ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from tpudeploy.launch.loaded import LoadedModel
from tpudeploy.server.app import create_app
from tpudeploy.server.local_service import LocalService
from tpudeploy.server.metrics import Metrics
from tpudeploy.server.settings import ServerSettings

_LAST_WORDS_S = 5
"""How long responses that were cut short may take to be sent."""


class _Server(uvicorn.Server):
    """Leaves signals to :func:`serve`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def serve(
    listener: socket.socket,
    models: Sequence[LoadedModel],
    settings: ServerSettings,
    *,
    grace_s: float,
    ready: Callable[[], None],
    stopping: Callable[[int], None],
) -> bool:
    """Answer requests until a signal says to stop; the models are closed then.

    :param listener: see :func:`tpudeploy.server.listening.listen`; it is closed as well.
    :param models: one a worker.
    :param grace_s: seconds that answers may still take after the signal.
    :param ready: called when requests are answered.
    :param stopping: called with the number of answers that are waited for.
    :returns: whether everything ended in order; not so after a second signal.
    """
    return asyncio.run(_Serving(listener, models, settings, grace_s).run(ready, stopping))


class _Serving:
    def __init__(
        self, listener: socket.socket, models: Sequence[LoadedModel], settings: ServerSettings, grace_s: float
    ) -> None:
        metrics = Metrics()
        self._service = LocalService(models, settings.limits, metrics)
        self._listener = listener
        self._grace_s = grace_s
        self._server = _Server(
            uvicorn.Config(
                create_app(self._service, settings, metrics),
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_LAST_WORDS_S,
            )
        )
        self._signals = 0
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()

    async def run(self, ready: Callable[[], None], stopping: Callable[[int], None]) -> bool:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        self._service.start()
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._listener]))
        stopped = asyncio.ensure_future(self._stop.wait())
        while not self._server.started and not serving.done():
            await asyncio.sleep(0.01)
        ready()
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        stopping(self._service.unfinished)
        return await self._wind_down(serving)

    async def _wind_down(self, serving: asyncio.Future[None]) -> bool:
        """Drain, then stop; all of it is given up on a second signal."""
        in_order = asyncio.ensure_future(self._finish(serving))
        at_once = asyncio.ensure_future(self._at_once.wait())
        await asyncio.wait({in_order, at_once}, return_when=asyncio.FIRST_COMPLETED)
        if in_order.done():
            return in_order.result()
        self._server.force_exit = self._server.should_exit = True
        return False

    async def _finish(self, serving: asyncio.Future[None]) -> bool:
        await self._service.drain(self._grace_s)
        self._server.should_exit = True
        await serving
        return await self._service.close()

    def _signalled(self) -> None:
        self._signals += 1
        (self._stop if self._signals == 1 else self._at_once).set()
