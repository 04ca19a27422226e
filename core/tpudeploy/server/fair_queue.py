"""A queue in which clients take turns: one that has a hundred requests waits as long for its second as others do.

Where it is full, whoever waits with most requests makes room for those who wait with less: its newest one has to go.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class QueueFullError(Exception):
    """There is no room, and nobody has a larger share."""


class FairQueue(Generic[T]):
    """Items of several clients, one of each in turn. Not thread-safe.

    :param limit: items at most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()  # in the order of their turns
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        """In the order in which they will be taken, were nothing to be added."""
        rounds = max(map(len, self._waiting.values()), default=0)
        for place in range(rounds):
            for items in self._waiting.values():
                if place < len(items):
                    yield items[place]

    def counts(self) -> dict[str, int]:
        """Items of each client that has any."""
        return {client: len(items) for client, items in self._waiting.items()}

    def put(self, client: str, item: T) -> T | None:
        """Add an item.

        :returns: another client's item that had to go for it.
        :raises QueueFullError: there is no room for this client.
        """
        dropped = self._make_room(client) if self._length >= self._limit else None
        self._waiting.setdefault(client, deque()).append(item)
        self._length += 1
        return dropped

    def take(self) -> T | None:
        """The next item: of the client whose turn it is, its oldest."""
        if not self._waiting:
            return None
        client, items = next(iter(self._waiting.items()))
        item = items.popleft()
        self._length -= 1
        if items:
            self._waiting.move_to_end(client)
        else:
            del self._waiting[client]
        return item

    def remove(self, item: T) -> bool:
        """Take out an item wherever it is; returns whether it was there."""
        for client, items in self._waiting.items():
            if item in items:
                items.remove(item)
                self._length -= 1
                if not items:
                    del self._waiting[client]
                return True
        return False

    def _make_room(self, client: str) -> T:
        own = len(self._waiting.get(client, ()))
        greedy = max(self._waiting, key=lambda name: len(self._waiting[name]), default=client)
        if len(self._waiting.get(greedy, ())) <= own + 1:
            raise QueueFullError
        self._length -= 1
        return self._waiting[greedy].pop()
