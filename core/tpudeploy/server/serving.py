"""Runs the application until it is told to stop.

The first SIGTERM or SIGINT lets what is being answered finish, for a while, and turns away what comes; a second one
ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI

from tpudeploy.server.app import create_app
from tpudeploy.server.local_service import QueueService
from tpudeploy.server.protocol import bounded_protocol
from tpudeploy.server.settings import Limits, ServerSettings

_POLL_S = 0.01
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
    service: QueueService,
    settings: ServerSettings,
    *,
    grace_s: float,
    ready: Callable[[], None],
    stopping: Callable[[int], None],
    at_once: Callable[[], None],
) -> bool:
    """Answer requests until a signal says to stop; the service is closed then.

    :param listener: see :func:`tpudeploy.server.listening.listen`; it is closed as well.
    :param grace_s: seconds that answers may still take after the signal.
    :param ready: called when requests are answered.
    :param stopping: called at the signal, with the number of answers that are waited for.
    :param at_once: called at a second signal; ends the process.
    :returns: whether every device was freed; one that hangs in a net cannot be.
    """
    app = create_app(service, settings, service.metrics)
    told = _Told(ready, stopping, at_once)
    return asyncio.run(_run(listener, service, _Server(_config(app, settings.limits)), grace_s, told))


@dataclass(frozen=True)
class _Told:
    ready: Callable[[], None]
    stopping: Callable[[int], None]
    at_once: Callable[[], None]


def _config(app: FastAPI, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=bounded_protocol(limits),  # of h11: the same everywhere, whatever else is installed
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )


async def _run(
    listener: socket.socket, service: QueueService, server: uvicorn.Server, grace_s: float, told: _Told
) -> bool:
    stop = asyncio.Event()

    def signalled() -> None:
        if stop.is_set():
            told.at_once()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    service.start()
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    stopped = asyncio.ensure_future(stop.wait())
    while not server.started and not serving.done():
        await asyncio.sleep(_POLL_S)
    if serving.done():
        serving.result()
    told.ready()
    await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    told.stopping(service.unfinished)
    await service.drain(grace_s)
    server.should_exit = True
    await serving
    stopped.cancel()
    return await service.close()
