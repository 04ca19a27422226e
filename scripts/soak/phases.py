"""The parts of a soak: everybody at once, everybody alike, clients that go away, and the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from soak.client import LEFT, Client, Result
from soak.metrics import Figures
from soak.program import Program
from soak.requests import QUESTIONS, Mix

AT_ONCE = (2, 3, 4, 12)
"""Requests that each client has under way: the last one asks for more than its share."""
BUSY_S = 1.0
"""After a 429; less than Retry-After says, so that the queue stays full."""
_POLL_S = 0.004
_FREE_S = 20.0
_UNDER_WAY_S = 1.0
_LONGEST = 400


@dataclass
class Load:
    """Results of many requests.

    :ivar seconds: that they took together.
    """

    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0


async def references(client: Client, mix: Mix) -> list[Result]:
    """Ask everything that has an answer of its own, one after the other, while nobody else asks."""
    results = [await client.send(request) for request in mix.references()]
    for question, result in zip(QUESTIONS, results, strict=False):
        mix.answers[question] = result.said.text if result.said is not None else ""
    return results + [await client.send(request) for request in mix.second_round()]


async def storm(clients: Sequence[Client], mix: Mix, seed: int, numbers: range, seconds: float) -> Load:
    """Requests of all kinds, as many at once as the clients can have; ends early when the time is over."""
    left = iter(numbers)
    deadline = time.monotonic() + seconds

    async def ask(client: Client, load: Load) -> bool:
        number = next(left, None)
        if number is None or time.monotonic() > deadline:
            return False
        result = await client.send(mix.request(seed, number))
        load.results.append(result)
        if result.outcome == "429":
            await asyncio.sleep(BUSY_S)
        return True

    return await _together(clients, ask)


async def fairness(clients: Sequence[Client], mix: Mix, answers: int) -> Load:
    """The same question by everybody, until there are so many answers: who gets how many?"""
    served = 0

    async def ask(client: Client, load: Load) -> bool:
        nonlocal served
        result = await client.send(mix.short(QUESTIONS[0]))
        if served >= answers:
            return False  # from here on some are idle: it is no contest any more
        load.results.append(result)
        if result.outcome == "429":
            await asyncio.sleep(BUSY_S)
        served += result.outcome == "200"
        return True

    return await _together(clients, ask)


async def _together(clients: Sequence[Client], ask: Callable[[Client, Load], Awaitable[bool]]) -> Load:
    load, began = Load(), time.monotonic()

    async def go_on(client: Client) -> None:
        while await ask(client, load):
            pass

    await asyncio.gather(*(go_on(client) for client, count in zip(clients, AT_ONCE, strict=True) for _ in range(count)))
    load.seconds = time.monotonic() - began
    return load


@dataclass(frozen=True)
class Freed:
    """How the device became free after a client had left.

    :param tokens: that were computed and that the client had not read, at most.
    :param seconds: from the closing to a ``/metrics`` that says so.
    """

    tokens: int
    seconds: float
    problem: str = ""


async def disconnect(client: Client, mix: Mix, events: int) -> Freed:
    """Leave a stream after some of its events; nobody else asks."""
    before = Figures(await client.metrics())
    result = await client.send(mix.endless(_LONGEST, "disconnect", way="leave", after=events))
    left, now = time.monotonic(), before
    while time.monotonic() - left < _FREE_S:
        now = Figures(await client.metrics())
        if not now.total("tpudeploy_worker_busy"):
            break
        await asyncio.sleep(_POLL_S)
    seconds = time.monotonic() - left
    name = "tpudeploy_completion_tokens_total"
    problem = result.problem or ("" if result.outcome == LEFT else f"the outcome is {result.outcome}")
    problem = problem or ("the worker is still busy" if now.total("tpudeploy_worker_busy") else "")
    return Freed(int(now.total(name) - before.total(name)) - events, seconds, problem)


async def quiet(client: Client) -> Figures:
    """Wait until nothing waits or runs; returns the figures then."""
    deadline = time.monotonic() + _FREE_S
    while True:
        figures = Figures(await client.metrics())
        if not figures.total("tpudeploy_worker_busy") + figures.total("tpudeploy_queue_length"):
            return figures
        if time.monotonic() > deadline:
            raise SystemExit(f"the server is still busy {_FREE_S:g} s after the last request")
        await asyncio.sleep(0.1)


@dataclass
class Stopped:
    """How the server ended.

    :ivar code: its exit code; None where it went on.
    """

    seconds: float
    code: int | None
    results: list[Result]


async def terminate(program: Program, clients: Sequence[Client], mix: Mix, bound_s: float) -> Stopped:
    """SIGTERM while all clients ask; each of them asks until it is turned away."""
    results: list[Result] = []

    def requests() -> Iterator[str]:
        while True:
            yield from ("whole", "stream")

    ways = requests()

    async def go_on(client: Client) -> None:
        while True:
            result = await client.send(mix.endless(_LONGEST, "at the end", way=next(ways)))
            results.append(result)
            if result.outcome == "429":
                await asyncio.sleep(BUSY_S)
            elif result.outcome != "200":
                return

    asking = [asyncio.ensure_future(go_on(client)) for client, count in zip(clients, AT_ONCE, strict=True)
              for _ in range(count)]  # fmt: skip
    await asyncio.sleep(_UNDER_WAY_S)
    signalled = time.monotonic()
    program.terminate()
    code = await asyncio.to_thread(program.wait, bound_s)
    seconds = time.monotonic() - signalled
    await asyncio.wait(asking, timeout=bound_s)
    for task in asking:
        task.cancel()
    for result in results:
        _judge_end(result, signalled)
    return Stopped(seconds, code, results)


def _judge_end(result: Result, signalled: float) -> None:
    """Whoever had asked before gets an answer or is told; whoever came later may find nobody."""
    if "shutting_down" in result.problem:
        result.outcome, result.problem = "told that the server stops", ""
    elif result.outcome == "cut off" and result.began > signalled:
        result.outcome, result.problem = "nobody there", ""
