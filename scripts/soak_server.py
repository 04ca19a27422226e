"""A server under thousands of mixed requests: what is lost, what is left behind, and who waits how long.

Usage, from the repository's root, with the package's ``dev`` extra installed::

    python scripts/soak_server.py                          # 2000 requests to the demo on this machine's CPU
    python scripts/soak_server.py --requests 60            # the same, shortly
    python scripts/soak_server.py --seconds 28800          # for a night
    python scripts/soak_server.py --serve "--bundle chatglm3-6b_int8 --device 0"
    python scripts/soak_server.py --url http://127.0.0.1:8000 --key KEY

Starts ``tpudeploy serve`` with four clients' keys and a short queue, and has the clients ask at the same time: short
and long, streamed and whole, tools, second turns, and broken, unauthorized, oversized and abandoned requests. Every
answer is held against the one that the same question got while nobody else asked. Then: is the queue fair to a client
that asks less than another; how soon is the device free when a client leaves; does SIGTERM end the server in time. What
the process holds is measured when nothing runs, after a warm-up and at the end.

With ``--url`` the server is somebody else's: what its process holds is not looked at, and it is not stopped.

Exit code 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shlex
import signal
import sys
import time
from contextlib import AsyncExitStack, ExitStack
from typing import Any

from soak.client import Client
from soak.metrics import Figures
from soak.phases import AT_ONCE, Load, disconnect, fairness, quiet, references, storm, terminate
from soak.program import CLIENTS, MAX_BODY, Held, Program
from soak.report import Report
from soak.requests import Mix

GRACE_S = 3.0
WARM_UP = 0.15
"""Of all requests; what is held afterwards is compared with the end."""
ANSWERS_PER_REQUEST = 0.05
LEAST_ANSWERS = 40
DISCONNECTS = 20
FEW_DISCONNECTS = 5
FEW = 500
"""Fewer requests than that say nothing about growth."""
KEPT = "tpudeploy_prefix_store_bytes"
DEMO = "chatglm3:demo --quant int8 --backend cpu"


def main() -> int:
    """Run, print, and return the exit code."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no server is left running
    with ExitStack() as stack:
        program = None
        if not options.url:
            arguments = [*shlex.split(options.serve), "--shutdown-grace", str(GRACE_S)]
            began = time.monotonic()
            program = stack.enter_context(Program(arguments))
            print(f"started in {time.monotonic() - began:.1f} s at {program.url}", flush=True)
        return asyncio.run(Soak(options, program).run())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--requests", type=int, default=2000, help="of the mixed load")
    parser.add_argument("--seconds", type=float, default=0, help="of the mixed load, however many requests those are")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", default=DEMO, help="arguments of `tpudeploy serve`")
    parser.add_argument("--url", default="", help="of a server that runs already")
    parser.add_argument("--key", default="", help="for it")
    return parser.parse_args()


class Soak:
    """One run.

    :param program: the server, where it is this run's own.
    """

    def __init__(self, options: argparse.Namespace, program: Program | None) -> None:
        self._options = options
        self._program = program
        self._report = Report()
        self._url = program.url if program else options.url
        self._seconds = options.seconds or float("inf")
        self._count = options.requests if not options.seconds else 1 << 40

    async def run(self) -> int:
        """All phases; returns the exit code."""
        answers: dict[str, Any] = {}
        keys = self._program.keys if self._program else [self._options.key] * len(CLIENTS)
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(Client(name, self._url, key, answers))
                for name, key in zip(CLIENTS, keys, strict=True)
            ]
            model = await clients[0].model()
            body_bytes = MAX_BODY if self._program else None
            mix = Mix(model, body_bytes, keys=bool(keys[0]))
            self._report.results("alone", Load(await references(clients[0], mix)))
            await self._load(clients, mix)
            await self._leave(clients[0], mix)
            if self._program is not None:
                bound_s = GRACE_S + 15
                self._report.stopped(await terminate(self._program, clients, mix, bound_s), bound_s)
                self._report.log(self._program.log)
        return self._report.finish()

    async def _load(self, clients: list[Client], mix: Mix) -> None:
        seed, first = self._options.seed, int(self._count * WARM_UP)
        warm = await storm(clients, mix, seed, range(first), self._seconds * WARM_UP)
        self._report.results("warm-up", warm)
        before, *held = await self._look(clients)
        middle = first + (self._count - first) // 2
        half_s = self._seconds * (1 - WARM_UP) / 2
        load = await storm(clients, mix, seed, range(first, middle), half_s)
        held.append((await self._look(clients))[1])
        half = len(load.results)
        later = await storm(clients, mix, seed, range(middle, self._count), half_s)
        load.results += later.results
        load.seconds += later.seconds
        self._report.results("load", load, in_detail=True)
        wanted = max(LEAST_ANSWERS, int(len(load.results) * ANSWERS_PER_REQUEST))
        contest = await fairness(clients, mix, wanted)
        self._report.results("contest", contest)
        self._report.fairness(contest, dict(zip(CLIENTS, AT_ONCE, strict=True)), judged=self._program is not None)
        after, held_after = await self._look(clients)
        self._report.server(before, after, mix.backend)
        requests = len(load.results) - half + len(contest.results)
        looks = [one for one in (*held, held_after) if one is not None]
        if looks:
            self._report.held(looks, requests, judged=requests >= FEW)

    async def _look(self, clients: list[Client]) -> tuple[Figures, Held | None]:
        """What is held while nothing runs and nobody is connected."""
        figures = await quiet(clients[0])
        for client in clients:
            await client.forget_connections()
        await asyncio.sleep(1.0)
        return figures, self._program.held(int(figures.total(KEPT))) if self._program else None

    async def _leave(self, client: Client, mix: Mix) -> None:
        chance = random.Random(self._options.seed)
        count = DISCONNECTS if self._count >= FEW else FEW_DISCONNECTS
        self._report.freed([await disconnect(client, mix, chance.randrange(1, 30)) for _ in range(count)])


if __name__ == "__main__":
    sys.exit(main())
