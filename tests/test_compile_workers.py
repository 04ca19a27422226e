"""Who works on what, so that memory holds."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tpudeploy.compile.workers import MixedTasks

LARGE = ["embedding", "lm_head", "lm_head_s16"]
SMALL = ["decode", "prefill", "verify", "proof"]
WAIT_S = 5.0


@pytest.mark.parametrize(("jobs", "most"), [(1, 1), (2, 1), (3, 1), (4, 2)])
def test_half_of_the_workers_at_most_have_large_tasks(jobs: int, most: int) -> None:
    """Every task is handed out once, whoever takes how long."""
    tasks = MixedTasks(SMALL * 3, LARGE * 3, jobs=jobs)
    lock, running, worst, done = threading.Lock(), 0, 0, []

    def work(_turn: int) -> None:
        nonlocal running, worst
        with tasks.take() as task:
            with lock:
                running += task in LARGE
                worst = max(worst, running)
            threading.Event().wait(0.002)
            with lock:
                running -= task in LARGE
                done.append(task)

    count = len(tasks)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, range(count), timeout=60))
    assert sorted(done) == sorted(SMALL * 3 + LARGE * 3)
    assert 1 <= worst <= most
    assert len(tasks) == 0


def test_a_large_task_that_fails_gives_its_place_back() -> None:
    tasks = MixedTasks([], ["embedding", "lm_head"], jobs=2)
    with pytest.raises(MemoryError), tasks.take():
        raise MemoryError
    with tasks.take() as task:
        assert task == "lm_head"


def test_where_only_large_tasks_are_left_a_worker_waits_for_its_turn() -> None:
    tasks = MixedTasks(["decode"], ["embedding", "lm_head"], jobs=2)
    taken: list[str] = []

    def second() -> None:
        with tasks.take() as task:
            taken.append(task)

    with tasks.take() as first, tasks.take() as beside:
        assert (first, beside) == ("embedding", "decode")
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.05)
        assert not taken
    waiting.join(WAIT_S)
    assert taken == ["lm_head"]
