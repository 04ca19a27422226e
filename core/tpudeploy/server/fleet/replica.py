"""A replica: one worker in a process of its own. It knows nothing of Ray; an actor of it is made elsewhere."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from tpudeploy.errors import BackendError, TpuDeployError
from tpudeploy.launch.backends import choose_backend
from tpudeploy.launch.loaded import LoadedModel
from tpudeploy.launch.targets import load_bundle
from tpudeploy.plugins import registry
from tpudeploy.runtime.bundle_store import Bundle, open_bundle
from tpudeploy.runtime.prefix_store import PrefixStore
from tpudeploy.runtime.verified_files import VerifiedFiles
from tpudeploy.server.base_worker import BaseWorker
from tpudeploy.server.device_watch import DeviceWatch
from tpudeploy.server.fleet.client import Batch, ReplicaState
from tpudeploy.server.fleet.offer import Offer, find_offered
from tpudeploy.server.job import Job, Outcome
from tpudeploy.server.service import Event, Question
from tpudeploy.server.sessions import keep_sessions
from tpudeploy.server.worker import Worker
from tpudeploy.settings import load_settings

_PAUSE_S = 0.2


class Replica:
    """See :class:`~tpudeploy.server.fleet.client.ReplicaClient`. Used from one event loop."""

    def __init__(self) -> None:
        self._node = socket.gethostname()
        self._loading = asyncio.Lock()
        self._worker: Worker | None = None
        self._watch: DeviceWatch | None = None
        self._store: PrefixStore | None = None
        self._events: asyncio.Queue[Event | Outcome] = asyncio.Queue()
        self._cancelled_up_to = 0
        self._running: tuple[int, Job] | None = None

    async def load(self, offer: Offer) -> ReplicaState | TpuDeployError:
        """See :meth:`ReplicaClient.load`."""
        async with self._loading:
            if self._worker is None:
                try:
                    model = await asyncio.to_thread(load_offered, offer, self._node)
                except TpuDeployError as error:
                    return error
                self._put_to_work(model, keep_sessions([model], offer.session_bytes))
        return await self.state()

    def _put_to_work(self, model: LoadedModel, store: PrefixStore | None) -> None:
        loop = asyncio.get_running_loop()
        self._watch, self._store = DeviceWatch([model]), store
        self._worker = Worker("0", model)

        def report(worker: BaseWorker, job: Job, outcome: Outcome) -> None:
            loop.call_soon_threadsafe(self._finished, worker, outcome)

        self._worker.start(report, lambda worker: None)

    async def state(self) -> ReplicaState:
        """See :meth:`ReplicaClient.state`."""
        worker, watch = self._worker, self._watch
        if worker is None or watch is None:
            return ReplicaState(self._node)
        return ReplicaState(
            self._node,
            loaded=True,
            busy=worker.job is not None,
            problem=worker.problem,
            seq_length=worker.model.engine.seq_length,
            backend=worker.model.backend.name,
            devices=tuple(await asyncio.to_thread(watch.ask)),
            device_ids=worker.devices,
            held_bytes=watch.held_bytes,
            store=self._store.counts if self._store is not None else None,
        )

    async def answer(self, number: int, question: Question) -> AsyncIterator[Batch]:
        """See :meth:`ReplicaClient.answer`."""
        worker = self._worker
        if worker is None or not worker.idle:
            reason = "it has no model" if worker is None else worker.problem or "it is busy"
            yield [Outcome(error=BackendError(f"a replica answers nothing: {reason}."), worker_problem=reason)]
            return
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event | Outcome]()
        job = Job(question, lambda event: _tell(loop, events, event))
        if number <= self._cancelled_up_to:
            job.cancel()
        self._events, self._running = events, (number, job)
        worker.assign(job)
        try:
            while True:
                batch = [await events.get()]
                while not events.empty():
                    batch.append(events.get_nowait())
                yield batch
                if isinstance(batch[-1], Outcome):
                    return
        finally:
            job.cancel()  # nobody hears it any more, or it has ended

    async def cancel(self, number: int) -> None:
        """See :meth:`ReplicaClient.cancel`."""
        self._cancelled_up_to = max(self._cancelled_up_to, number)
        if self._running is not None and self._running[0] <= number:
            self._running[1].cancel()

    async def close(self, timeout_s: float) -> bool:
        """See :meth:`ReplicaClient.close`."""
        worker, self._worker = self._worker, None
        if worker is None:
            return True
        if self._running is not None:
            self._running[1].cancel()
        return await asyncio.to_thread(worker.stop, timeout_s)

    async def check_health(self) -> None:
        """Ray Serve asks; a replica whose device is lost is started again, maybe elsewhere."""
        if self._worker is not None and self._worker.problem:
            raise RuntimeError(self._worker.problem)

    def _finished(self, worker: BaseWorker, outcome: Outcome) -> None:
        worker.job, worker.problem, self._running = None, outcome.worker_problem, None
        self._events.put_nowait(_portable(outcome))


def load_offered(offer: Offer, node: str) -> LoadedModel:
    """Find a bundle on this machine, and load it on devices that no other process uses.

    :raises TpuDeployError: it is not here, or cannot be loaded.
    """
    settings = load_settings()
    folder = find_offered(offer, settings, node)
    bundle = open_bundle(folder, verified=VerifiedFiles(settings.home))
    try:
        return _load_on_free_devices(bundle, offer.backend)
    except BackendError as error:
        raise BackendError(f"on the machine {node}: {error.message}", hint=error.hint) from error


def _load_on_free_devices(bundle: Bundle, name: str) -> LoadedModel:
    """Replicas of one machine start together and may choose the same device: whoever locks it first has it."""
    plugins = registry()
    backend = choose_backend(plugins, name, bundle.manifest.format)
    chips = bundle.manifest.nets.chips
    chosen = backend.default_devices(chips)
    while True:
        try:
            return load_bundle(bundle, plugins, name, chosen)
        except BackendError:
            time.sleep(_PAUSE_S)
            tried, chosen = chosen, backend.default_devices(chips)
            if chosen == tried:
                raise


def _tell(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Event | Outcome], event: Event) -> None:
    loop.call_soon_threadsafe(events.put_nowait, event)


def _portable(outcome: Outcome) -> Outcome:
    """With an error that another process can read, whoever's it was."""
    error = outcome.error
    if error is None or isinstance(error, TpuDeployError):
        return outcome
    return replace(outcome, error=RuntimeError(f"{type(error).__name__}: {error}"))
