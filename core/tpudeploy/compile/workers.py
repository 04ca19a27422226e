"""Work on several slices at once, bounded by cores and by memory, and report from the main thread."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Generic, TypeVar

from tpudeploy.compile.toolchain.run import stop_running_tools
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.progress import Progress, StageEvent

T = TypeVar("T")
R = TypeVar("R")
Report = Callable[[StageEvent], None]

_POLL_S = 0.1
_BASE_BYTES = 1_500_000_000
"""Memory of this process with torch, and of a vendor tool, before any weights."""


def slice_bytes(config: DecoderConfig) -> int:
    """Memory that working on the largest slice takes at its peak.

    Measured at hidden 4096, ffn 13696, vocabulary 65024: two at once peak at 5.4 GB, while the compiler works on the
    embedding and the output head, 1.1 GB each in float32.
    """
    layer = 4 * (config.parameters - 2 * config.vocab_size * config.hidden_size) // config.num_layers
    head = 4 * config.vocab_size * config.hidden_size
    return _BASE_BYTES + 2 * max(layer, head)


def worker_count(config: DecoderConfig, *, asked: int | None = None) -> int:
    """How many slices to work on at once: what was asked for, else what cores and free memory allow."""
    if asked is not None:
        return asked
    import psutil

    by_memory = int(psutil.virtual_memory().available * 0.8) // slice_bytes(config)
    return max(1, min(len(os.sched_getaffinity(0)), by_memory))


class MixedTasks(Generic[T]):
    """Tasks for workers that take one after the other, where not all may be busy with large ones at once.

    The vendor's tools take four bytes a weight and more, and a vocabulary's table has five times a layer's largest
    matrix: two of those at once decide what a build needs, and it takes no longer if small ones run beside.

    :param small: tasks, in order.
    :param large: tasks, in order.
    :param jobs: workers; at most half of them take large tasks.
    """

    def __init__(self, small: Sequence[T], large: Sequence[T], *, jobs: int) -> None:
        self._small, self._large = deque(small), deque(large)
        self._places = max(1, jobs // 2)
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._small) + len(self._large)

    @contextmanager
    def take(self) -> Iterator[T]:
        """The next task; waits where only large ones are left and enough of them are under way."""
        with self._changed:
            self._changed.wait_for(lambda: self._small or self._places)
            large = bool(self._large and self._places)
            self._places -= large
            task = (self._large if large else self._small).popleft()
        try:
            yield task
        finally:
            with self._changed:
                self._places += large
                self._changed.notify_all()


def run_all(work: Callable[[T, Report], R], items: Sequence[T], *, jobs: int, progress: Progress) -> list[R]:
    """Run ``work(item, report)`` for every item in ``jobs`` threads; results in the order of the items.

    The first failure, or Ctrl-C, stops the vendor tools that are running, drops what has not begun, and is raised
    when every thread has ended: nothing goes on writing behind the user's back.
    """
    events: queue.SimpleQueue[StageEvent] = queue.SimpleQueue()
    with ThreadPoolExecutor(jobs, thread_name_prefix="tpudeploy") as pool:
        futures = [pool.submit(work, item, events.put) for item in items]
        try:
            _drain(futures, events, progress)
        except BaseException:
            for future in futures:
                future.cancel()
            # Again and again: a thread that is between two calls begins the next one before it hears of this.
            while wait(futures, timeout=_POLL_S).not_done:
                stop_running_tools()
            raise
    return [future.result() for future in futures]


def _drain(futures: Sequence[Future[R]], events: queue.SimpleQueue[StageEvent], progress: Progress) -> None:
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        while not events.empty():
            progress(events.get())
        for future in done:
            future.result()
