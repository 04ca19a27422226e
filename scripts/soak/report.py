"""Prints what was found, and remembers what is wrong."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from soak.client import LEFT, Result
from soak.figures import jain, quantile, spread
from soak.metrics import Figures
from soak.phases import Freed, Load, Stopped
from soak.program import Held

LEAST_JAIN = 0.9
MOST_GROWTH_MB = 4.0
"""Of memory that is the process's own, for a thousand requests."""
SLACK_MB = 24.0
"""What a heap may be larger by for once."""
MOST_FILES, MOST_THREADS = 3, 8
"""Threads of a pool are started when they are first needed."""
MOST_TOKENS, MOST_FREE_S = 64, 5.0
"""Tokens that are computed or on their way when a client leaves, where it is the machine that is slow."""
SHOWN = 10
MB = 1e6


class Report:
    """Of one run."""

    def __init__(self) -> None:
        self._problems: list[str] = []

    def results(self, phase: str, load: Load, *, in_detail: bool = False) -> None:
        """Requests by outcome; in detail, by kind as well, and how long they took."""
        for result in load.results:
            if result.problem:
                self._problems.append(f"{phase}: {result.request.kind}: {result.problem}")
        outcomes = Counter(result.outcome or "unreadable" for result in load.results)
        failed = sum(bool(result.problem) for result in load.results)
        told = ", ".join(f"{count} x {outcome}" for outcome, count in sorted(outcomes.items()))
        took = f" in {load.seconds:.1f} s, {len(load.results) / load.seconds:.1f} a second" if load.seconds else ""
        print(f"{phase}: {len(load.results)} requests{took}: {told}; failures: {failed}", flush=True)
        if in_detail:
            _print_kinds(load.results)
            _print_latency(load.results)

    def fairness(self, load: Load, at_once: Mapping[str, int], *, judged: bool) -> None:
        """Answers and waiting by client."""
        waits: dict[str, list[float]] = {name: [] for name in at_once}
        for result in load.results:
            if result.outcome == "200":
                waits[result.client].append(result.whole_s)
        print(f"\n{'client':10} {'at once':>8} {'answers':>8} {'p50 s':>8} {'max s':>8}")
        for name, values in waits.items():
            print(
                f"{name:10} {at_once[name]:8} {len(values):8} {quantile(values, 0.5):8.3f} {quantile(values, 1):8.3f}"
            )
        index, naive = jain([len(values) for values in waits.values()]), jain(list(at_once.values()))
        print(f"Jain's index of answers: {index:.3f} (a queue that is not fair: {naive:.3f})")
        if judged and index < LEAST_JAIN:
            self._problems.append(f"the queue is not fair: Jain's index is {index:.3f}")

    def server(self, before: Figures, after: Figures, backend: str) -> None:
        """What the server itself counted; a CPU's memory is everybody's and says nothing."""
        ends = after.by("tpudeploy_answers_total", "finish")
        print(f"\nanswers by the server's count: {_listed(ends)}")
        statuses = after.by("tpudeploy_requests_total", "status")
        print(f"requests by the server's count: {_listed(statuses)}")
        if ends.get("error"):
            self._problems.append(f"{ends['error']:g} answers ended with an error")
        self._problems += [f"{count:g} responses {status}" for status, count in statuses.items() if status >= "500"]
        first, last = before.memory(), after.memory()
        print(
            "device memory: " + (", ".join(f"{name} {value / MB:.1f} MB" for name, value in last.items()) or "unknown")
        )
        for name, value in last.items():
            if backend != "cpu" and value > first.get(name, value):
                self._problems.append(f"{name} grew by {value - first[name]:g} bytes")

    def held(self, looks: Sequence[Held], requests: int, *, judged: bool) -> None:
        """What the server's process holds: warmed up, after half of the load, and at the end.

        A heap takes a while to find its size, so growth is that of the second half.

        :param requests: of the second half.
        """
        before, middle, after = looks
        heads = f"{'warmed up':>10} {'half-way':>10} {'at the end':>10} {'a thousand more':>16}"
        print(f"\n{'held by the process':26} {heads}")
        for name, told in (("rss", "RSS, MB"), ("uss", "USS, MB"), ("kept", "conversations of it, MB")):
            values = [getattr(look, name) / MB for look in looks]
            rate = (values[2] - values[1]) / max(requests, 1) * 1000
            print(f"{told:26} {values[0]:10.1f} {values[1]:10.1f} {values[2]:10.1f} {rate:+16.2f}")
        for name in ("files", "threads"):
            print(f"{name:26} " + " ".join(f"{getattr(look, name):10}" for look in looks))
        growth = (after.uss - middle.uss - (after.kept - middle.kept)) / MB
        if judged and growth > SLACK_MB + MOST_GROWTH_MB * requests / 1000:
            self._problems.append(f"the process grew by {growth:.1f} MB within {requests} requests")
        if after.files > before.files + MOST_FILES:
            self._problems.append(f"files are left open: {before.files} before, {after.files} after")
        if after.threads > before.threads + MOST_THREADS:
            self._problems.append(f"threads are left: {before.threads} before, {after.threads} after")

    def freed(self, found: Sequence[Freed]) -> None:
        """How soon the device was free."""
        tokens = [one.tokens for one in found]
        seconds = [one.seconds for one in found]
        print(
            f"\nclients that left: {len(found)}; computed beyond what they had read: median {quantile(tokens, 0.5):g}, "
            f"most {max(tokens)} tokens; free after: median {quantile(seconds, 0.5):.3f}, most {max(seconds):.3f} s"
        )
        self._problems += [f"a client left: {one.problem}" for one in found if one.problem]
        if max(tokens) > MOST_TOKENS or max(seconds) > MOST_FREE_S:
            self._problems.append(f"the device was free only after {max(tokens)} tokens, {max(seconds):.1f} s")

    def stopped(self, found: Stopped, bound_s: float) -> None:
        """How it ended."""
        self.results("at SIGTERM", Load(found.results))
        if found.code is None:
            self._problems.append(f"the server goes on {bound_s:g} s after SIGTERM")
        else:
            print(f"SIGTERM: ended after {found.seconds:.1f} s with exit code {found.code}")
        if found.code:
            self._problems.append(f"the exit code is {found.code}")

    def log(self, text: str) -> None:
        """What the server said."""
        wrong = re.findall(r"^.* ERROR .*|^Traceback.*(?:\n.*){1,60}?\n\w.*", text, re.M)
        self._problems += [f"in the log: {found}" for found in wrong]

    def finish(self) -> int:
        """Say what is wrong; returns the exit code."""
        print(f"\nproblems: {len(self._problems)}")
        for problem in self._problems[:SHOWN]:
            print(f"  {problem}")
        return 1 if self._problems else 0


def _print_kinds(results: Sequence[Result]) -> None:
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    wrong: Counter[str] = Counter()
    for result in results:
        kinds[result.request.kind][result.outcome or "unreadable"] += 1
        wrong[result.request.kind] += bool(result.problem)
    print(f"\n{'kind':32} {'requests':>8} {'failures':>8}  outcomes")
    for kind, outcomes in sorted(kinds.items()):
        told = ", ".join(f"{outcome}: {count}" for outcome, count in sorted(outcomes.items()))
        print(f"{kind:32} {sum(outcomes.values()):8} {wrong[kind]:8}  {told}")


def _print_latency(results: Sequence[Result]) -> None:
    """Of answers; waiting in the queue is part of it."""
    answered = [result for result in results if result.outcome == "200" and result.request.answers]
    refused = [result.whole_s for result in results if result.outcome not in ("200", LEFT)]
    state = [result.whole_s for result in results if result.outcome == "200" and not result.request.answers]
    rows = {
        "first text of a stream": [result.first_s for result in answered if result.first_s is not None],
        "whole answer": [result.whole_s for result in answered],
        "refusal": refused,
        "state and page": state,
    }
    print(f"\n{'seconds':32} {'count':>8} {'p50':>8} {'p95':>8} {'p99':>8} {'max':>8}")
    for name, values in rows.items():
        print(f"{name:32} {len(values):8} {spread(values)}")
    print(flush=True)


def _listed(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{count:g} x {name}" for name, count in sorted(counts.items())) or "none"
