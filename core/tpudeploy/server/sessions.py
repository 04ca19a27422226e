"""Conversations whose rows the devices' caches lose are kept in host memory, where engines can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tpudeploy.launch.loaded import LoadedModel
from tpudeploy.runtime.prefix_store import PrefixStore, StoreCounts


def keep_sessions(models: Sequence[LoadedModel], limit_bytes: int | None) -> PrefixStore | None:
    """One store for all of these models.

    :param limit_bytes: see :class:`PrefixStore`; 0 keeps nothing.
    :returns: None where no engine can keep anything.
    """
    if limit_bytes == 0:
        return None
    store = PrefixStore(limit_bytes)
    kept = [model.engine.keep_prefixes(store) for model in models]
    return store if any(kept) else None


def sum_counts(counts: Sequence[StoreCounts]) -> StoreCounts:
    """The figures of several stores, none of which shares anything with another."""
    return StoreCounts(**{field.name: sum(getattr(one, field.name) for one in counts) for field in fields(StoreCounts)})


def store_figures(counts: StoreCounts) -> Iterator[Metric]:
    """Of the store of prefixes in host memory."""
    name = "tpudeploy_prefix_store"
    yield GaugeMetricFamily(f"{name}_bytes", "Host memory of kept rows.", counts.bytes)
    yield GaugeMetricFamily(f"{name}_limit_bytes", "What it may be.", counts.limit_bytes)
    yield CounterMetricFamily(f"{name}_lookups", "Prompts of which the cache held too little.", counts.lookups)
    yield CounterMetricFamily(f"{name}_hits", "Those of them for which rows came back.", counts.hits)
    yield CounterMetricFamily(f"{name}_restored_tokens", "Tokens whose rows came back.", counts.restored_tokens)
