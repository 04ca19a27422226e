"""The runs of ``tpudeploy bench``, with progress on stderr, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpudeploy.cli.interrupts import interrupt_sets_flag
from tpudeploy.cli.progress import LiveLine
from tpudeploy.cli.terminal import format_bytes, format_seconds, print_facts, print_line, print_table

if TYPE_CHECKING:
    from tpudeploy.bench import BenchCase, BenchReport, FinishedRun, Variant
    from tpudeploy.bench.report import Spread
    from tpudeploy.errors import TpuDeployError
    from tpudeploy.launch import LoadedModel


@dataclass(frozen=True)
class Repeats:
    """How often each test is run: ``warmup`` runs that do not count, then ``runs`` that do."""

    runs: int
    warmup: int


@dataclass(frozen=True)
class Ended:
    """How far the runs went.

    :param failure: what ended them, where that was an error.
    :param interrupted: whether the user ended them.
    """

    finished: Sequence[FinishedRun]
    failure: TpuDeployError | None
    interrupted: bool


def run_all(model: LoadedModel, cases: Sequence[BenchCase], variants: Sequence[Variant], repeats: Repeats) -> Ended:
    """Measure; the first Ctrl-C ends it after the token that is being computed, and so does a device that fails."""
    from tpudeploy.bench import count_runs, measure
    from tpudeploy.errors import TpuDeployError

    finished: list[FinishedRun] = []
    failure: TpuDeployError | None = None
    runs, warmup = repeats.runs, repeats.warmup
    total, begun = count_runs(cases, variants, runs=runs, warmup=warmup), 0
    with LiveLine() as line, interrupt_sets_flag() as stop:

        def announce(case: BenchCase, variant: Variant, number: int) -> None:
            nonlocal begun
            which = f"run {number} of {runs}" if number else "warming up"
            how = f", {variant.name}" if len(variants) > 1 else ""
            line.update(f"{case.name}{how}, {which}", begun, total, f"{begun}/{total}")
            begun += 1

        try:
            for run in measure(
                model, cases, variants, runs=runs, warmup=warmup, cancelled=stop.is_set, announce=announce
            ):
                finished.append(run)
        except TpuDeployError as error:
            failure = error
        except KeyboardInterrupt:
            stop.set()
        return Ended(finished, failure, interrupted=stop.is_set())


def print_report(report: BenchReport) -> None:
    """The table that people read."""
    from tpudeploy.bench.tables import COLUMNS, model_file, program, row_name, warning

    said = warning(report)
    if said:
        print_line(f"{said}\n")
    rows = [
        [
            report.platform,
            program(report),
            model_file(report),
            _figures(row.first_token_s),
            _figures(row.tokens_per_s),
            row_name(report, row),
            _tokens(row.prompt_tokens, row.new_tokens),
            f"{row.tokens_per_pass.median:.2f}" if row.tokens_per_pass else "-",
        ]
        for row in report.rows
    ]
    rows += [
        [
            old.platform,
            old.program,
            old.model,
            f"{old.first_token_s:.3f}",
            f"{old.tokens_per_s:.3f}",
            "published",
            "",
            "",
        ]
        for old in report.published
    ]
    print_table([*COLUMNS, "test", "tokens in + out", "tokens a pass"], rows)
    print_line()
    print_facts(_facts(report))


def _facts(report: BenchReport) -> list[tuple[str, str]]:
    warmup = f", {report.warmup} before them to warm up" if report.warmup else ""
    temperatures = [f"{d.temperature_celsius} °C" for d in report.devices if d.temperature_celsius is not None]
    weights, buffers = format_bytes(report.weights_bytes), format_bytes(report.buffers_bytes)
    return [
        ("runs", f"{report.runs} of each test{warmup}; shown are median (least-most)"),
        ("holds", f"{report.seq_length} tokens"),
        ("loaded in", format_seconds(report.load_s)),
        ("device memory", f"{weights} weights, {buffers} cache and buffers"),
        *([("temperature", ", ".join(temperatures))] if temperatures else []),
        ("bundle", report.bundle),
    ]


def _figures(spread: Spread | None) -> str:
    """Median, and the smallest and largest."""
    if spread is None:
        return "-"
    median, least, most = (f"{value:.3f}" for value in (spread.median, spread.minimum, spread.maximum))
    return median if len(spread.values) == 1 else f"{median} ({least}-{most})"


def _tokens(prompt: int, new: Sequence[int]) -> str:
    least, most = min(new), max(new)
    return f"{prompt} + {most}" if least == most else f"{prompt} + {least}-{most}"
