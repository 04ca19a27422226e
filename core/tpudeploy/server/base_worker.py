"""What a service needs of a worker, wherever it computes. Used from the service's event loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from tpudeploy.server.job import Job, Outcome

Report = Callable[["BaseWorker", Job, Outcome], None]
Changed = Callable[["BaseWorker"], None]


class BaseWorker(ABC):
    """Answers one question at a time.

    :param name: for people and metrics, for example ``"0"``.
    :ivar job: what it answers now.
    :ivar problem: why it answers nothing; empty where it does.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.problem = ""
        self.job: Job | None = None

    @property
    def idle(self) -> bool:
        """Whether it can take a job now."""
        return self.job is None and not self.problem

    @property
    @abstractmethod
    def devices(self) -> tuple[int, ...]:
        """Ids of its devices; empty where the backend chose."""

    @abstractmethod
    def start(self, report: Report, changed: Changed) -> None:
        """Begin to take jobs.

        :param report: called when a job is done, from any thread.
        :param changed: called when it was lost, or came back, while it had no job; from any thread.
        """

    @abstractmethod
    def assign(self, job: Job) -> None:
        """Give it a job; it must be idle."""

    @abstractmethod
    def stop(self, timeout_s: float) -> bool:
        """End after the job that it has, and free the device; returns whether that was done in time.

        Called in a thread of its own.
        """

    @abstractmethod
    def shared_prefix(self, ids: tuple[int, ...]) -> tuple[int, int]:
        """How many tokens of a prompt it would not have to compute, and of how many it has just done so.

        What is kept in host memory comes back, but a copy is not as cheap as what is there.
        """


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count
