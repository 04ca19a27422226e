"""A worker whose model is in a replica: hands on questions and answers, and notices when the replica is lost or back.

Whoever starts lost replicas again, this only watches: it loads the model in one that has none.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from tpudeploy.errors import BackendError, TpuDeployError
from tpudeploy.server.base_worker import BaseWorker, Changed, Report, common_prefix
from tpudeploy.server.fleet.client import ReplicaClient, ReplicaState
from tpudeploy.server.fleet.offer import Offer
from tpudeploy.server.job import Job, Outcome

_log = logging.getLogger(__name__)
_WATCH_S = 5.0
_LOST_S = 1.0
"""How often a replica is looked at: one that answers, and one that was lost."""
_REMEMBERED = 32
"""Conversations that a replica is taken to have rows of."""
_PATIENCE_S = 15.0
"""How long a replica may take to say how it is; its loop does nothing that takes long."""


class RemoteWorker(BaseWorker):
    """One replica.

    :param state: what the replica said when it had loaded the model.
    :param offer: what to load where it was started again.
    """

    def __init__(self, name: str, client: ReplicaClient, state: ReplicaState, offer: Offer) -> None:
        super().__init__(name)
        self.state = state
        self._client = client
        self._offer = offer
        self._number = 0
        self._recent: deque[tuple[int, ...]] = deque(maxlen=_REMEMBERED)
        self._report: Report = lambda worker, job, outcome: None
        self._changed: Changed = lambda worker: None
        self._stopped = False
        self._watching: asyncio.Future[None] | None = None
        self._answering: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Future[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def devices(self) -> tuple[int, ...]:
        """See :attr:`BaseWorker.devices`."""
        return self.state.device_ids

    def start(self, report: Report, changed: Changed) -> None:
        """See :meth:`BaseWorker.start`; from the event loop."""
        self._report, self._changed = report, changed
        self._loop = asyncio.get_running_loop()
        self._watching = self._begin(self._keep_watch())

    def assign(self, job: Job) -> None:
        """See :meth:`BaseWorker.assign`."""
        self.job = job
        self._number += 1
        number = self._number

        def tell() -> None:
            self._begin(self._cancel(number))

        job.on_cancel = tell
        self._answering = self._begin(self._answer(job, number))

    def shared_prefix(self, ids: tuple[int, ...]) -> tuple[int, int]:
        """See :meth:`BaseWorker.shared_prefix`; a guess: the replica may have forgotten some of it since."""
        shared = [common_prefix(recent, ids) for recent in self._recent]
        return max(shared, default=0), shared[-1] if shared else 0

    def stop(self, timeout_s: float) -> bool:
        """See :meth:`BaseWorker.stop`; a replica that is lost holds nothing."""
        if self._loop is None:
            return True
        try:
            return asyncio.run_coroutine_threadsafe(self._stop(timeout_s), self._loop).result(timeout_s + _LOST_S)
        except (FutureTimeoutError, RuntimeError):
            return False

    async def _stop(self, timeout_s: float) -> bool:
        self._stopped = True
        if self._watching is not None:
            self._watching.cancel()  # it would give the model back to a replica that has none
        try:
            return await asyncio.wait_for(self._client.close(timeout_s), timeout_s)
        except Exception as error:  # noqa: BLE001 - in whichever way it is out of reach
            _log.debug("worker %s cannot be stopped: %s", self.name, error)
            return True
        finally:
            for task in self._tasks:
                task.cancel()

    async def _answer(self, job: Job, number: int) -> None:
        outcome: Outcome | None = None
        try:
            async for batch in self._client.answer(number, job.question):
                for event in batch:
                    if isinstance(event, Outcome):
                        outcome = event
                    else:
                        job.emit(event)
        except asyncio.CancelledError:
            if self._stopped:
                raise
            outcome = _lost("the replica cannot be reached")
        except Exception as error:  # noqa: BLE001 - in whichever way it is out of reach
            outcome = _lost(f"the replica ended while it answered ({type(error).__name__})")
        outcome = outcome or _lost("the replica broke off")
        if outcome.result is not None:
            self._recent.append((*job.question.prompt_ids, *outcome.result.token_ids))
        if outcome.worker_problem:
            self._recent.clear()
            _log.error("worker %s on %s is lost: %s", self.name, self.state.node, outcome.worker_problem)
        self._report(self, job, outcome)

    async def _cancel(self, number: int) -> None:
        try:
            await self._client.cancel(number)
        except Exception as error:  # noqa: BLE001 - a replica that is gone computes nothing
            _log.debug("worker %s heard no cancellation: %s", self.name, error)

    async def _keep_watch(self) -> None:
        while True:
            await asyncio.sleep(_LOST_S if self.problem else _WATCH_S)
            await self._look()

    async def _look(self) -> None:
        """Learn how the replica is; one that was started again is given its model."""
        try:
            state = await asyncio.wait_for(self._client.state(), _PATIENCE_S)
            if not state.loaded:
                self._set_problem("the replica was started again and loads its model", state)
                loaded = await self._client.load(self._offer)
                if isinstance(loaded, TpuDeployError):
                    raise loaded
                state = loaded
        except TpuDeployError as error:
            self._set_problem(str(error))
        except Exception as error:  # noqa: BLE001 - in whichever way it is out of reach
            self._set_problem(f"the replica cannot be reached ({type(error).__name__})")
            if self._answering is not None:
                self._answering.cancel()  # Ray would wait for another replica, however long
        else:
            if self.problem and state.busy and self.job is None:
                return  # with what was asked before it was out of reach
            self._set_problem(state.problem, state)

    def _set_problem(self, problem: str, state: ReplicaState | None = None) -> None:
        self.state = state or self.state
        if problem == self.problem:
            return
        if problem:
            self._recent.clear()
            _log.error("worker %s on %s: %s", self.name, self.state.node, problem)
        else:
            _log.info("worker %s on %s answers again", self.name, self.state.node)
        self.problem = problem
        self._changed(self)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _lost(problem: str) -> Outcome:
    return Outcome(error=BackendError(f"{problem}."), worker_problem=problem)
