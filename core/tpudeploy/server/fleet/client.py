"""A replica as the server sees it: in tests it is one of this process, else one behind Ray."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tpudeploy.contracts.backend import DeviceInfo
from tpudeploy.errors import TpuDeployError
from tpudeploy.runtime.prefix_store import StoreCounts
from tpudeploy.server.fleet.offer import Offer
from tpudeploy.server.job import Outcome
from tpudeploy.server.service import Event, Question

Batch = Sequence[Event | Outcome]
"""What a replica had to say since it was last heard."""


@dataclass(frozen=True)
class ReplicaState:
    """What a replica says of itself.

    :param node: the machine that it is on.
    :param loaded: whether it has a model; one that was started again has none.
    :param busy: it still computes an answer.
    :param problem: why it can answer nothing any more; empty where it can.
    :param seq_length: tokens of prompt and answer together; 0 without a model.
    :param devices: those that it uses, as they are now.
    :param device_ids: their ids; empty where the backend chose.
    :param held_bytes: their memory that the model takes.
    :param store: of conversations in its host memory.
    """

    node: str
    loaded: bool = False
    busy: bool = False
    problem: str = ""
    seq_length: int = 0
    backend: str = ""
    devices: tuple[DeviceInfo, ...] = ()
    device_ids: tuple[int, ...] = ()
    held_bytes: int = 0
    store: StoreCounts | None = None


class ReplicaClient(Protocol):
    """How to reach a replica. Whatever cannot be reached raises some exception or other."""

    async def load(self, offer: Offer) -> ReplicaState | TpuDeployError:
        """Load a bundle; one that is loaded stays. Deliberate errors are returned: they survive the way back."""

    async def state(self) -> ReplicaState:
        """How it is."""

    def answer(self, number: int, question: Question) -> AsyncIterator[Batch]:
        """Answer a question; the last of the last batch is its :class:`Outcome`.

        :param number: counts the questions of this replica, upwards.
        """

    async def cancel(self, number: int) -> None:
        """The answer of that number is wanted no more, even if it was not begun yet."""

    async def close(self, timeout_s: float) -> bool:
        """Free the device; returns whether that was done in time."""
