"""What came of the runs: medians and spreads, beside what was published."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from tpudeploy import __version__
from tpudeploy.bench.measure import FinishedRun
from tpudeploy.contracts.adapter import ModelAdapter, PublishedSpeed
from tpudeploy.contracts.backend import Backend, DeviceInfo
from tpudeploy.contracts.base import Value
from tpudeploy.errors import TpuDeployError
from tpudeploy.launch import LoadedModel


class Spread(Value):
    """One quantity over several runs.

    :param first_quartile: a quarter of the runs lie below it, and a quarter above ``third_quartile``.
    :param values: run by run.
    """

    median: float
    minimum: float
    maximum: float
    first_quartile: float
    third_quartile: float
    values: tuple[float, ...]


class BenchRow(Value):
    """One case in one variant.

    :param test: what was measured: ``question``, ``prompt 128``, ``context 512``.
    :param variant: how tokens were generated.
    :param new_tokens: of each run's answer.
    :param tokens_per_s: rate of the tokens after the first; None where there were none.
    :param tokens_per_pass: as many of them each pass of the nets gave; over 1 where drafts were right.
    :param drafted_tokens: of all runs, ``accepted_tokens`` of which were right.
    """

    test: str
    variant: str
    prompt_tokens: int
    new_tokens: tuple[int, ...]
    first_token_s: Spread
    tokens_per_s: Spread | None
    tokens_per_pass: Spread | None
    drafted_tokens: int
    accepted_tokens: int


class BenchReport(Value):
    """A benchmark, as far as it went.

    :param platform: what it ran on, for tables.
    :param hardware: whether that is a real chip; other times say nothing about one.
    :param load_s: what it took to load tokenizer, nets and buffers.
    :param weights_bytes: device memory of the nets' weights; ``buffers_bytes`` is that of cache and buffers.
    :param devices: what the backend says of its devices after the last run, temperature among it.
    :param interrupted: whether runs are missing.
    :param published: what others published for this model in this mode.
    """

    tpudeploy_version: str = __version__
    model: str
    quant: str
    bundle: str
    backend: str
    platform: str
    hardware: bool
    devices: tuple[DeviceInfo, ...]
    seq_length: int
    load_s: float
    weights_bytes: int
    buffers_bytes: int
    warmup: int
    runs: int
    interrupted: bool
    rows: tuple[BenchRow, ...]
    published: tuple[PublishedSpeed, ...]


def make_report(
    model: LoadedModel,
    finished: Sequence[FinishedRun],
    adapters: Mapping[str, ModelAdapter],
    *,
    platform: str,
    warmup: int,
    runs: int,
    interrupted: bool,
) -> BenchReport:
    """Sum up what was finished. The model must still be loaded.

    :param adapters: the models that plugins know, for what was published.
    :param platform: what the user calls this machine; empty names it by its devices.
    :param runs: how many of each case were asked for.
    """
    devices = _devices(model.backend, model.devices)
    memory = model.engine.session.memory()
    hardware = bool(devices) and all(device.platform for device in devices)
    return BenchReport(
        model=model.title,
        quant=model.quant,
        bundle=str(model.path),
        backend=model.backend.name,
        platform=platform or _platform(model.backend, devices, hardware=hardware),
        hardware=hardware,
        devices=devices,
        seq_length=model.engine.seq_length,
        load_s=model.load_s,
        weights_bytes=memory.weights_bytes,
        buffers_bytes=memory.buffers_bytes,
        warmup=warmup,
        runs=runs,
        interrupted=interrupted,
        rows=_rows(finished),
        published=published_for(model.model, model.quant, model.path.name, adapters),
    )


def published_for(
    model: str, quant: str, file_name: str, adapters: Mapping[str, ModelAdapter]
) -> tuple[PublishedSpeed, ...]:
    """What was published for a model in a quantization mode.

    :param model: family and variant.
    :param file_name: a bmodel's, which names its mode where nothing else does.
    """
    family, _, name = model.partition(":")
    variants = adapters[family].variants() if family in adapters else ()
    speeds = [speed for variant in variants if variant.name == name for speed in variant.speeds]
    return tuple(speed for speed in speeds if speed.quant.value == quant or speed.quant.value in file_name.lower())


def spread(values: Sequence[float]) -> Spread:
    """Median and range of at least one value."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Spread(
        median=statistics.median(values),
        minimum=min(values),
        maximum=max(values),
        first_quartile=low,
        third_quartile=high,
        values=tuple(values),
    )


def _rows(finished: Sequence[FinishedRun]) -> tuple[BenchRow, ...]:
    groups: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in finished:
        groups.setdefault((run.case.name, run.variant.name), []).append(run)
    return tuple(_row(test, variant, runs) for (test, variant), runs in groups.items())


def _row(test: str, variant: str, runs: Sequence[FinishedRun]) -> BenchRow:
    results = [run.result for run in runs]
    rates = [result.tokens_per_s for result in results if result.tokens_per_s]
    passes = [result.tokens_per_pass for result in results if result.tokens_per_s]
    return BenchRow(
        test=test,
        variant=variant,
        prompt_tokens=results[0].prompt_tokens,
        new_tokens=tuple(len(result.token_ids) for result in results),
        first_token_s=spread([result.first_token_s or 0.0 for result in results]),
        tokens_per_s=spread(rates) if rates else None,
        tokens_per_pass=spread(passes) if passes else None,
        drafted_tokens=sum(result.drafts.drafted for result in results),
        accepted_tokens=sum(result.drafts.accepted for result in results),
    )


def _devices(backend: Backend, used: Sequence[int]) -> tuple[DeviceInfo, ...]:
    """What the backend tells of the devices in use; nothing where it cannot be asked now."""
    try:
        devices = backend.devices()
    except TpuDeployError:
        return ()
    return tuple(device for device in devices if device.id in used)


def _platform(backend: Backend, devices: Sequence[DeviceInfo], *, hardware: bool) -> str:
    if not devices:
        return backend.name
    first = devices[0]
    name = f"{first.name} {first.platform}" if hardware else first.name
    return f"{len(devices)} x {name}" if len(devices) > 1 else name
