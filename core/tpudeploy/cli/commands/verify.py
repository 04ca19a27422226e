"""``tpudeploy verify``: how far each slice and the whole model are from the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tpudeploy.cli import net_options, options
from tpudeploy.cli.terminal import format_seconds, print_json, print_line, print_table

if TYPE_CHECKING:
    from tpudeploy.verify import NetRow, PromptRow, TargetReport, VerifyReport


def verify(
    model: options.Model,
    quant: options.Quant = "",
    backend: options.Backend = "auto",
    model_dir: options.ModelDir = None,
    seq_length: options.SeqLength = None,
    prefill: net_options.Prefill = "",
    decode_cache: net_options.DecodeCache = "",
    verify_nets: net_options.VerifyNets = "",
    devices: net_options.Chips = 1,
    split: net_options.SplitBy = "tensor",
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", metavar="N", envvar="TPUDEPLOY_MAX_NEW_TOKENS", min=1, help="Tokens of each answer."
        ),
    ] = 16,
    every_net: Annotated[
        bool,
        typer.Option(
            "--every-net",
            envvar="TPUDEPLOY_EVERY_NET",
            show_default=False,
            help="Show every net; without it, the worst of each kind.",
        ),
    ] = False,
    jobs: options.Jobs = None,
    yes: options.Yes = False,
    hub: options.Hub = "",
    offline: options.Offline = False,
    toolchain: options.Toolchain = None,
    as_json: options.Json = False,
) -> None:
    """Compare every slice and the whole model with the torch reference in float32.

    First the ONNX slices as exported, then the model in its quantization mode on each backend that can run here, or
    on the one that is named. Exit code 1 where something is worse than its mode allows.
    """
    from tpudeploy.cli.verification import verify_here
    from tpudeploy.verify.report import Verdict

    nets = net_options.parse_nets(seq_length, prefill, decode_cache, devices, split, verify_nets)
    report = verify_here(
        model,
        model_dir,
        nets,
        quant=quant,
        backend=backend,
        max_new_tokens=max_new_tokens,
        jobs=jobs,
        yes=yes,
        hub=hub,
    )
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _print_report(report, every_net=every_net)
    if report.verdict is not Verdict.OK:
        raise typer.Exit(1)


def _print_report(report: VerifyReport, *, every_net: bool) -> None:
    print_line(
        f"{report.model}, {report.quant}, {report.seq_length} tokens: compared with the torch reference in float32"
    )
    for target in report.targets:
        _print_target(target, every_net=every_net)
    for skipped in report.skipped:
        print_line(f"\nNot compared: {skipped.what}: {skipped.reason}")
    print_line(f"\n{report.verdict.value.upper()} in {format_seconds(report.elapsed_s)}.")


def _print_target(target: TargetReport, *, every_net: bool) -> None:
    print_line(f"\n{target.name}: {target.verdict.value} ({format_seconds(target.elapsed_s)})")
    nets = target.nets if every_net else tuple(target.by_kind())
    if nets:
        columns = ["net" if every_net else "worst net", "S x C", "cosine", "max error", "", "limit"]
        print_table(columns, [_net_cells(row, target.limits.net_cosine) for row in nets], right=[2, 3])
    if target.prompts:
        print_line()
        columns = ["prompt", "tokens", "answer", "agree", "diverges at", "cosine", "worst", "regret", ""]
        print_table(columns, [_prompt_cells(row) for row in target.prompts], right=range(1, 8))


def _net_cells(row: NetRow, limit: float) -> list[str]:
    error = "not finite" if row.max_error is None else f"{row.max_error:.2g}"
    return [row.net, str(row.stage), f"{row.cosine:.7f}", error, row.verdict.value, f"cosine {limit}"]


def _prompt_cells(row: PromptRow) -> list[str]:
    return [
        row.prompt,
        str(row.prompt_tokens),
        str(row.answer_tokens),
        f"{row.agreement:.0%}",
        "-" if row.first_divergence is None else str(row.first_divergence),
        f"{row.cosine:.6f}",
        f"{row.worst_cosine:.6f}",
        "not finite" if row.regret is None else f"{row.regret:.3f}",
        row.verdict.value,
    ]
