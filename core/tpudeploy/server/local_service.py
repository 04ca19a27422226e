"""Services with a fair queue in this process, and workers that take from it. Used from one event loop."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client.core import Metric

from tpudeploy.contracts.chat import ChatTemplate, Message
from tpudeploy.errors import BackendError, TpuDeployError, UsageError
from tpudeploy.launch.loaded import LoadedModel
from tpudeploy.launch.text import TextTools
from tpudeploy.runtime.prefix_store import PrefixStore
from tpudeploy.server import errors
from tpudeploy.server.base_worker import BaseWorker
from tpudeploy.server.device_watch import DeviceWatch
from tpudeploy.server.fair_queue import FairQueue, QueueFullError
from tpudeploy.server.job import Job, Outcome
from tpudeploy.server.metrics import Figures, Metrics
from tpudeploy.server.service import Answering, Health, ModelCard, Question, Service, WorkerHealth
from tpudeploy.server.sessions import store_figures
from tpudeploy.server.settings import Limits
from tpudeploy.server.ticket import Ticket
from tpudeploy.server.worker import Worker

_log = logging.getLogger(__name__)

_LONGEST_TOKEN_CHARS = 512
"""No token of the families that are known stands for more: the longest of GLM-4 is so many spaces."""
_SMOOTHING = 0.2
"""Weight of the newest answer in the mean time that one takes."""
_ANSWER_S = 10.0
"""What an answer is taken to cost before one was measured."""


class QueueService(Service):
    """Answers with workers, wherever they compute.

    :param text: tokenizer and template of the model that all of them have; texts are encoded here.
    :param workers: the service starts and stops them.
    :param figures: asked for those of devices and host memory, from any thread.
    """

    def __init__(
        self,
        text: TextTools,
        card: ModelCard,
        workers: Sequence[BaseWorker],
        limits: Limits,
        *,
        figures: Figures,
        metrics: Metrics | None = None,
    ) -> None:
        self._text = text
        self._text_start = _start_of(text.template)
        self._card = card
        self._limits = limits
        self.metrics = metrics or Metrics()
        self.workers = list(workers)
        self.figures = figures
        self._queue: FairQueue[Ticket] = FairQueue(limits.queue)
        self._running: dict[Job, Ticket] = {}
        self._answer_s = _ANSWER_S
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.metrics.watch(self)

    @property
    def model(self) -> ModelCard:
        """The model."""
        return self._card

    def start(self) -> None:
        """Begin to answer, from the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        for worker in self.workers:
            worker.start(self._report, self._changed)

    async def encode_chat(self, messages: Sequence[Message], *, forced_tool: str | None = None) -> tuple[int, ...]:
        """See :meth:`Service.encode_chat`."""
        self._check_size(sum(len(message.content) for message in messages), "messages")
        # A family that forces no tools need not know the keyword.
        forced: dict[str, Any] = {} if forced_tool is None else {"forced_tool": forced_tool}
        try:
            ids = await asyncio.to_thread(self._text.template.encode, messages, **forced)
        except TpuDeployError as error:
            raise errors.from_usage(error, "messages") from error
        return tuple(ids)

    async def encode_text(self, text: str) -> tuple[int, ...]:
        """See :meth:`Service.encode_text`."""
        self._check_size(len(text), "prompt")
        ids = await asyncio.to_thread(self._text.tokenizer.encode, text)
        return (*self._text_start, *ids) if ids else ()

    def tool_call_message(self, name: str, arguments: dict[str, object]) -> Message:
        """See :meth:`Service.tool_call_message`."""
        try:
            return self._text.template.tool_call_message(name, arguments)
        except TpuDeployError as error:
            raise errors.from_usage(error, "messages") from error

    def submit(self, question: Question, client: str) -> Answering:
        """See :meth:`Service.submit`."""
        self._check_ready()
        if len(question.prompt_ids) > self._card.seq_length:
            param = "messages" if question.is_chat else "prompt"
            raise errors.too_long(len(question.prompt_ids), self._card.seq_length, param)
        ticket = Ticket(question, client, self._require_loop(), self._limits.timeout_s, self._give_up, self._position)
        if not self._queue and (worker := self._worker_for(ticket)) is not None:
            self._begin(ticket, worker)
        else:
            self._enqueue(client, ticket)
        return ticket

    def _enqueue(self, client: str, ticket: Ticket) -> None:
        try:
            dropped = self._queue.put(client, ticket)
        except QueueFullError:
            ticket.cancel()
            self.metrics.refused.inc()
            raise errors.queue_full(len(self._queue), self._retry_after_s()) from None
        if dropped is not None:
            self.metrics.refused.inc()
            dropped.fail(errors.queue_full(len(self._queue), self._retry_after_s()))

    def health(self) -> Health:
        """See :meth:`Service.health`."""
        workers = tuple(
            WorkerHealth(worker.name, worker.devices, worker.job is not None, worker.problem) for worker in self.workers
        )
        return Health(workers, len(self._queue), self._stopping)

    def waiting(self) -> dict[str, int]:
        """How many requests of each client wait."""
        return self._queue.counts()

    @property
    def unfinished(self) -> int:
        """Requests that wait or run."""
        return len(self._queue) + len(self._running)

    async def drain(self, grace_s: float) -> None:
        """Take nothing new; give what is there some time, then cancel it."""
        self._stopping = True
        deadline = time.monotonic() + grace_s
        while self.unfinished and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
        self.cancel_all()

    async def close(self) -> bool:
        """End the workers and free their devices; returns whether all of them did in time."""
        self.cancel_all()
        stopped = await asyncio.gather(*(asyncio.to_thread(worker.stop, _STOP_S) for worker in self.workers))
        return all(stopped)

    def cancel_all(self) -> None:
        """Cancel what waits and what runs."""
        self._stopping = True
        stopped = errors.unavailable("The server is being stopped.", "shutting_down")
        while (ticket := self._queue.take()) is not None:
            ticket.fail(stopped)
        for ticket in list(self._running.values()):
            ticket.fail(stopped)

    def _check_ready(self) -> None:
        if self._stopping:
            raise errors.unavailable("The server is being stopped.", "shutting_down", retry_after_s=_RESTART_S)
        if all(worker.problem for worker in self.workers):
            raise errors.unavailable("No device is left that answers.", "no_worker")

    def _check_size(self, chars: int, param: str) -> None:
        """Refuse what no tokenizer need look at."""
        most = self._card.seq_length * _LONGEST_TOKEN_CHARS
        if chars > most:
            raise errors.ApiError(
                400,
                f"This model holds {self._card.seq_length} tokens of prompt and answer together; your prompt of "
                f"{chars} characters has more. Shorten it.",
                param=param,
                code="context_length_exceeded",
            )

    def _dispatch(self) -> None:
        """Give waiting tickets to idle workers."""
        while any(worker.idle for worker in self.workers) and (ticket := self._queue.take()) is not None:
            worker = self._worker_for(ticket)
            if worker is not None:
                self._begin(ticket, worker)

    def _worker_for(self, ticket: Ticket) -> BaseWorker | None:
        """Of the idle workers the one that has computed most of a prompt already."""
        ids = ticket.question.prompt_ids
        idle = [worker for worker in self.workers if worker.idle]
        if len(idle) <= 1:
            return idle[0] if idle else None
        return max(idle, key=lambda worker: worker.shared_prefix(ids))

    def _begin(self, ticket: Ticket, worker: BaseWorker) -> None:
        self._running[ticket.job] = ticket
        self.metrics.queued_s.observe(ticket.begin())
        worker.assign(ticket.job)

    def _report(self, worker: BaseWorker, job: Job, outcome: Outcome) -> None:
        """From a worker's thread."""
        _call(self._require_loop(), lambda: self._finished(worker, job, outcome))

    def _changed(self, worker: BaseWorker) -> None:
        """From a worker's thread: it was lost, or came back."""
        _call(self._require_loop(), self._look_at_workers)

    def _finished(self, worker: BaseWorker, job: Job, outcome: Outcome) -> None:
        worker.job, worker.problem = None, outcome.worker_problem
        ticket = self._running.pop(job)
        self._answer_s += _SMOOTHING * (ticket.running_s - self._answer_s)
        self.metrics.count(outcome, ticket.waited_s)
        ticket.fail(_api_error(outcome.error))  # unless it has ended, as it should
        self._look_at_workers()

    def _look_at_workers(self) -> None:
        if all(other.problem for other in self.workers):
            self._fail_waiting()
        self._dispatch()

    def _fail_waiting(self) -> None:
        while (ticket := self._queue.take()) is not None:
            ticket.fail(errors.unavailable("No device is left that answers.", "no_worker"))

    def _give_up(self, ticket: Ticket) -> None:
        """A ticket is wanted no more: its worker hears it before its next pass."""
        ticket.job.cancel()
        self._queue.remove(ticket)

    def _position(self, ticket: Ticket) -> int:
        return next((place for place, other in enumerate(self._queue, 1) if other is ticket), 0)

    def _retry_after_s(self) -> int:
        alive = sum(not worker.problem for worker in self.workers) or 1
        return max(1, math.ceil(self._answer_s * (len(self._queue) + 1) / alive))

    def _require_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("the service was not started")
        return self._loop


class LocalService(QueueService):
    """Answers with one or more models of this process, all of them the same one.

    :param models: one a worker; the service closes them.
    :param store: where the models keep what their caches lose; only told of in metrics.
    """

    def __init__(
        self,
        models: Sequence[LoadedModel],
        limits: Limits,
        metrics: Metrics | None = None,
        store: PrefixStore | None = None,
    ) -> None:
        first = models[0]
        card = ModelCard(
            name=first.model,
            created=int(time.time()),
            seq_length=first.engine.seq_length,
            quant=first.quant,
            backend=first.backend.name,
        )
        workers = [Worker(str(index), model) for index, model in enumerate(models)]
        watch = DeviceWatch(models)

        def figures() -> Iterator[Metric]:
            if store is not None:
                yield from store_figures(store.counts)
            yield from watch.gauges()

        super().__init__(first.require_text(), card, workers, limits, figures=figures, metrics=metrics)


_POLL_S = 0.05
_STOP_S = 10.0
"""How long a worker may take for the pass that it is in, and to free its device."""
_RESTART_S = 30
"""When to try again, where the server is stopped."""


def _start_of(template: ChatTemplate) -> tuple[int, ...]:
    """What a family begins every sequence with, plain text included."""
    try:
        return tuple(template.encode([], add_generation_prompt=False))
    except TpuDeployError:  # it cannot write a conversation of nothing
        return ()


def _api_error(error: Exception | None) -> errors.ApiError:
    if isinstance(error, UsageError):
        return errors.from_usage(error)
    return errors.device_failed() if isinstance(error, BackendError) else errors.internal()


def _call(loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(action)
    except RuntimeError:  # the loop was closed: nobody waits any more
        _log.debug("nobody hears a worker any more")
