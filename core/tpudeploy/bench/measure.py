"""Runs, one after the other, on a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tpudeploy.bench.cases import BenchCase, Variant
from tpudeploy.launch import LoadedModel
from tpudeploy.runtime.generator import GenerationResult, never
from tpudeploy.runtime.writer import Cancelled

Announce = Callable[[BenchCase, Variant, int], None]
"""Told which run begins: case, variant, and its number from 1, or 0 for one that only warms up."""


@dataclass(frozen=True)
class FinishedRun:
    """One run that went to its end."""

    case: BenchCase
    variant: Variant
    result: GenerationResult


def count_runs(cases: Sequence[BenchCase], variants: Sequence[Variant], *, runs: int, warmup: int) -> int:
    """How many runs there will be, those that warm up included."""
    return len(cases) * len(variants) * (runs + warmup)


def measure(
    model: LoadedModel,
    cases: Sequence[BenchCase],
    variants: Sequence[Variant],
    *,
    runs: int,
    warmup: int,
    cancelled: Cancelled = never,
    announce: Announce = lambda case, variant, number: None,
) -> Iterator[FinishedRun]:
    """Run every case in every variant; variants take turns, so that a chip that grows warm slows none of them alone.

    The cache is empty before each run: no prompt is found in it. A cancellation ends it all.

    :param warmup: runs before those that count, of each case and variant.
    :raises BackendError: a net failed.
    """
    for case in cases:
        for number in range(1 - warmup, runs + 1):
            for variant in variants:
                if cancelled():
                    return
                announce(case, variant, max(number, 0))
                result = _run(model, case, variant, cancelled)
                if result.finish_reason == "cancelled":
                    return
                if number > 0:
                    yield FinishedRun(case, variant, result)


def _run(model: LoadedModel, case: BenchCase, variant: Variant, cancelled: Cancelled) -> GenerationResult:
    model.engine.forget()
    options = replace(variant.options, max_new_tokens=case.new_tokens, ignore_eos=case.ignore_eos)
    generation = model.generate(case.prompt_ids, options, cancelled=cancelled)
    for _ in generation:
        pass
    return generation.result
