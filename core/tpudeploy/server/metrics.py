"""Figures for Prometheus; each server has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tpudeploy.server.job import Outcome

if TYPE_CHECKING:
    from tpudeploy.server.local_service import QueueService

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
Figures = Callable[[], Iterator[Metric]]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": "tpudeploy"}
        self.requests = Counter("requests", "HTTP requests by route and status.", ["route", "status"], **own)
        self.request_s = Histogram(
            "request_seconds", "Time from a request to the end of its response.", ["route"], buckets=_SECONDS, **own
        )
        self.refused = Counter("queue_refused", "Requests refused because the queue was full.", **own)
        self.queued_s = Histogram("queue_seconds", "Time that requests waited for a worker.", buckets=_SECONDS, **own)
        self.answers = Counter("answers", "Answers by how they ended.", ["finish"], **own)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts.", **own)
        self.reused_tokens = Counter("prompt_tokens_reused", "Those of them that the KV cache held already.", **own)
        self.completion_tokens = Counter("completion_tokens", "Tokens generated.", **own)
        self.first_token_s = Histogram(
            "first_token_seconds", "Time from a request to its first token, waiting included.", buckets=_SECONDS, **own
        )
        self.token_s = Histogram(
            "token_seconds", "Computing time of each token after the first.", buckets=_TOKEN_SECONDS, **own
        )
        self.passes = Counter("passes", "Passes over the model after first tokens.", **own)
        self.drafted = Counter("draft_tokens", "Drafted tokens that were verified.", **own)
        self.accepted = Counter("draft_tokens_accepted", "Those of them that were right.", **own)

    def watch(self, service: QueueService) -> None:
        """Tell of this service's queue, workers and devices too."""
        self.registry.register(_ServiceCollector(service))

    def count(self, outcome: Outcome, waited_s: float) -> None:
        """A worker has done with an answer.

        :param waited_s: seconds that it waited for the worker.
        """
        result = outcome.result
        self.answers.labels("error" if outcome.error is not None or result is None else result.finish_reason).inc()
        if result is None:
            return
        self.prompt_tokens.inc(result.prompt_tokens)
        self.reused_tokens.inc(result.reused_tokens)
        self.completion_tokens.inc(len(result.token_ids))
        self.passes.inc(result.drafts.passes)
        self.drafted.inc(result.drafts.drafted)
        self.accepted.inc(result.drafts.accepted)
        if result.first_token_s is not None:
            self.first_token_s.observe(waited_s + result.first_token_s)
        for seconds in outcome.token_s:
            self.token_s.observe(seconds)

    def render(self) -> bytes:
        """Everything, in Prometheus' text format; asks the devices, so it may take a moment."""
        return generate_latest(self.registry)


class _ServiceCollector(Collector):
    """What is looked up when it is asked for."""

    def __init__(self, service: QueueService) -> None:
        self._service = service

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry would ask for everything only to learn the names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Gauges of this moment."""
        waiting = self._service.waiting()
        yield GaugeMetricFamily("tpudeploy_queue_length", "Requests that wait.", sum(waiting.values()))
        clients = GaugeMetricFamily("tpudeploy_queue_client_length", "The same, by client.", labels=["client"])
        for client, count in waiting.items():
            clients.add_metric([client], count)
        yield clients
        health = self._service.health()
        busy = GaugeMetricFamily("tpudeploy_worker_busy", "Whether a worker answers now.", labels=["worker"])
        up = GaugeMetricFamily("tpudeploy_worker_up", "Whether a worker can answer.", labels=["worker"])
        for worker in health.workers:
            busy.add_metric([worker.name], worker.busy)
            up.add_metric([worker.name], not worker.problem)
        yield from (busy, up)
        yield from self._service.figures()
