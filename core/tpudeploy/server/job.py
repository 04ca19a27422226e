"""One question on its way through a worker: what its thread computes, and what the event loop hears of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tpudeploy.runtime.generator import GenerationResult
from tpudeploy.server.service import Event, Question


@dataclass(frozen=True)
class Outcome:
    """What a worker's thread says when it has done with a job; the last that it says of it.

    :param result: what the generation came to; None where it did not begin.
    :param token_s: seconds that each token after the first took.
    :param error: why it failed; None where it did not.
    :param worker_problem: why this worker can answer nothing any more; empty where it can.
    """

    result: GenerationResult | None = None
    token_s: tuple[float, ...] = ()
    error: Exception | None = None
    worker_problem: str = ""


@dataclass(eq=False)
class Job:
    """A question for a worker's thread.

    :param emit: called in that thread with each event, in order.
    :param cancelled: set by :meth:`cancel`.
    :param on_cancel: called by :meth:`cancel`; for a worker whose thread is not in this process.
    """

    question: Question
    emit: Callable[[Event], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    on_cancel: Callable[[], None] = lambda: None

    def cancel(self) -> None:
        """The answer is wanted no more. Idempotent."""
        if not self.cancelled.is_set():
            self.cancelled.set()
            self.on_cancel()
