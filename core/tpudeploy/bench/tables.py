"""A report as text for other programs and for README files. Columns and units are those of the published tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from tpudeploy.bench.report import BenchReport, BenchRow, Spread
from tpudeploy.contracts.drafter import NO_DRAFTS

COLUMNS = ("platform", "test program", "model", "first token latency(s)", "token per second(tokens/s)")
"""Of the tables in sophon-demo's READMEs."""
_CSV_COLUMNS = (
    "source",
    "platform",
    "hardware",
    "program",
    "model",
    "quant",
    "seq_length",
    "test",
    "variant",
    "prompt_tokens",
    "new_tokens",
    "runs",
    "first_token_s",
    "first_token_s_min",
    "first_token_s_max",
    "tokens_per_s",
    "tokens_per_s_min",
    "tokens_per_s_max",
    "tokens_per_pass",
)


def program(report: BenchReport) -> str:
    """What stands under "test program"."""
    return f"tpudeploy {report.tpudeploy_version} ({report.backend})"


def model_file(report: BenchReport) -> str:
    """What stands under "model": ``chatglm3:6b int8``."""
    return report.model if report.quant == "bmodel" else f"{report.model} {report.quant}"


def row_name(report: BenchReport, row: BenchRow) -> str:
    """What was measured, with the variant where there are several."""
    several = len({other.variant for other in report.rows}) > 1
    drafts = "no drafts" if row.variant == NO_DRAFTS else f"{row.variant} drafts"
    return f"{row.test}, {drafts}" if several else row.test


def warning(report: BenchReport) -> str:
    """What must be said of times that were not measured on a chip; empty for those that were."""
    if report.hardware:
        return ""
    return (
        f"NOT A CHIP: these times are those of {report.platform} and say nothing about a BM1684X; "
        "`tpudeploy estimate` models one."
    )


def to_markdown(report: BenchReport) -> str:
    """A table to paste into a README, with what was published below what was measured."""
    rows = [
        (
            report.platform,
            program(report),
            f"{model_file(report)}, {row_name(report, row)}",
            f"{row.first_token_s.median:.3f}",
            f"{row.tokens_per_s.median:.3f}" if row.tokens_per_s else "-",
        )
        for row in report.rows
    ]
    rows += [
        (old.platform, old.program, f"{old.model} (published)", f"{old.first_token_s:.3f}", f"{old.tokens_per_s:.3f}")
        for old in report.published
    ]
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS)), *map(_line, rows)]
    notes = [f"Median of {_count(report)} each, {report.seq_length} tokens."]
    if said := warning(report):
        notes.append(f"**{said}**")
    return "\n".join([*lines, "", *notes]) + "\n"


def to_csv(report: BenchReport) -> str:
    """One line a row, with a header; times in seconds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for row in report.rows:
        first = (
            "measured",
            report.platform,
            report.hardware,
            program(report),
            report.model,
            report.quant,
            report.seq_length,
        )
        tokens = (row.test, row.variant, row.prompt_tokens, max(row.new_tokens), len(row.new_tokens))
        passes = _figures(row.tokens_per_pass)[:1]
        writer.writerow([*first, *tokens, *_figures(row.first_token_s), *_figures(row.tokens_per_s), *passes])
    for old in report.published:
        first_columns = ("published", old.platform, True, old.program, old.model, old.quant.value, "")
        writer.writerow(
            [*first_columns, "question", "", "", "", "", old.first_token_s, "", "", old.tokens_per_s, "", "", ""]
        )
    return text.getvalue()


def _figures(spread: Spread | None) -> Sequence[str]:
    if spread is None:
        return ("", "", "")
    return tuple(f"{value:.6g}" for value in (spread.median, spread.minimum, spread.maximum))


def _count(report: BenchReport) -> str:
    counts = sorted({len(row.new_tokens) for row in report.rows})
    least, most = counts[0], counts[-1]
    return f"{most} run{'s' if most != 1 else ''}" if least == most else f"{least} to {most} runs"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
