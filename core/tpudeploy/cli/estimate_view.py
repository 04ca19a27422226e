"""An estimate for people: tables on the terminal, and a page with bars."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from tpudeploy.cli.terminal import format_bytes, print_facts, print_line, print_table, printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tpudeploy.estimate.passes import Times
    from tpudeploy.estimate.report import Estimate


def write_chart(estimate: Estimate, path: Path) -> None:
    """Draw where the time goes. :raises StorageError: the file cannot be written."""
    from tpudeploy.errors import StorageError
    from tpudeploy.estimate.chart import draw_chart

    try:
        path.write_text(draw_chart(estimate), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}.", hint="Name another file.") from error


def print_estimate(estimate: Estimate) -> None:
    """Everything but what only programs want to know."""
    chips = f", {estimate.chips} chips ({estimate.split})" if estimate.chips > 1 else ""
    print_line(
        f"{printable(estimate.title)} in {estimate.quant}, conversations of {estimate.seq_length} tokens{chips}: "
        "modelled for BM1684X"
    )
    source = f"{estimate.source.value} of {estimate.compiler}" if estimate.compiler else "roofline"
    print_facts(
        [
            ("nets' times", f"{source}{f'; {estimate.note}' if estimate.note else ''}"),
            ("device memory", _memory(estimate)),
        ]
    )
    _print_prompts(estimate)
    _print_contexts(estimate)
    _print_speculation(estimate)
    _print_times(estimate)
    _print_nets(estimate)


def _memory(estimate: Estimate) -> str:
    from tpudeploy.estimate.chip import BM1684X

    sizes = ", ".join(format_bytes(size) for size in estimate.device_memory_bytes)
    if max(estimate.device_memory_bytes) <= BM1684X.memory_bytes:
        return sizes
    return f"{sizes}: does not fit, a chip has {format_bytes(BM1684X.memory_bytes)} at most"


def _print_prompts(estimate: Estimate) -> None:
    print_line()
    rows = [[str(p.prompt_tokens), f"{p.first_token_s:.3f} s", _passes(p.passes)] for p in estimate.prompts]
    print_table(["prompt", "first token", "passes (new x cache)"], rows, right=(0, 1))


def _print_contexts(estimate: Estimate) -> None:
    print_line()
    columns = ["context", "tokens/s", "a token", "it reads", "limit tokens/s", "share of limit", "pass"]
    rows = [
        [
            str(token.context_tokens),
            f"{token.tokens_per_s:.2f}",
            f"{token.token_s * 1e3:.1f} ms",
            format_bytes(token.bytes_per_token),
            f"{token.limit_tokens_per_s:.1f}",
            f"{token.limit_share:.0%}",
            token.stage,
        ]
        for token in estimate.contexts
    ]
    print_table(columns, rows, right=range(6))


def _print_speculation(estimate: Estimate) -> None:
    if not estimate.speculation:
        return
    print_line()
    columns = ["check of drafts", "a pass", "costs tokens", "worth it from", "assumed a pass", "tokens/s", "speed-up"]
    rows = [
        [
            check.stage,
            f"{check.pass_s * 1e3:.1f} ms",
            f"{check.cost:.2f}",
            f"{check.break_even_acceptance:.1%} of {check.drafted_tokens} drafts",
            f"{check.tokens_per_pass:g}" if check.tokens_per_pass is not None else "-",
            f"{check.tokens_per_s:.2f}" if check.tokens_per_s is not None else "-",
            f"{check.speed_up:.2f}" if check.speed_up is not None else "-",
        ]
        for check in estimate.speculation
    ]
    print_table(columns, rows, right=range(1, 7))


def _print_times(estimate: Estimate) -> None:
    print_line()
    items: list[tuple[str, Times]] = [(f"prompt of {p.prompt_tokens}", p.times) for p in estimate.prompts]
    items += [(f"context of {token.context_tokens}", token.times) for token in estimate.contexts]
    items += [(f"check of {check.drafted_tokens} drafts", check.times) for check in estimate.speculation]
    columns = ["milliseconds", "embedding", "layers", "output layer", "exchanges", "host", "together"]
    rows = [
        [
            name,
            *(f"{s * 1e3:.2f}" for s in (t.embedding_s, t.layers_s, t.lm_head_s, t.exchanges_s, t.host_s, t.total_s)),
        ]
        for name, t in items
    ]
    print_table(columns, rows, right=range(1, 7))


def _print_nets(estimate: Estimate) -> None:
    print_line()
    columns = ["net", "new x cache", "how many", "each", "DMA", "arithmetic", "moved"]
    rows = [
        [
            net.net,
            net.stage,
            str(net.count),
            *(f"{s * 1e3:.3f} ms" for s in (net.seconds, net.dma_s, net.arithmetic_s)),
            format_bytes(net.moved_bytes),
        ]
        for net in estimate.nets
    ]
    print_table(columns, rows, right=range(2, 7))


def _passes(stages: Sequence[str]) -> str:
    groups = ((stage, len(list(group))) for stage, group in groupby(stages))
    return ", ".join(stage if count == 1 else f"{count} of {stage}" for stage, count in groups)
