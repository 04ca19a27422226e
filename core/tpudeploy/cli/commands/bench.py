"""``tpudeploy bench``: how fast a model answers, in the layout of the published tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tpudeploy.cli import benchmark, net_options, options
from tpudeploy.cli.outcome import INTERRUPTED
from tpudeploy.cli.terminal import print_json, print_note

if TYPE_CHECKING:
    from tpudeploy.bench import BenchReport, CaseChoice
    from tpudeploy.launch import Target

_LENGTHS = "TOKENS,..."


def bench(
    model: options.OptionalModel = "",
    quant: options.Quant = "",
    backend: options.Backend = "auto",
    device: options.Devices = "",
    split: net_options.SplitBy = "tensor",
    model_dir: options.ModelDir = None,
    bundle: options.Bundle = None,
    bmodel: options.Bmodel = None,
    tokenizer_dir: options.TokenizerDir = None,
    mask: options.Mask = "",
    seq_length: options.SeqLength = None,
    runs: Annotated[
        int, typer.Option("--runs", metavar="N", envvar="TPUDEPLOY_RUNS", min=1, help="Runs of each test that count.")
    ] = 5,
    warmup: Annotated[
        int,
        typer.Option("--warmup", metavar="N", envvar="TPUDEPLOY_WARMUP", min=0, help="Runs before them that do not."),
    ] = 1,
    question: Annotated[
        str | None,
        typer.Option(
            "--question",
            metavar="TEXT",
            envvar="TPUDEPLOY_QUESTION",
            show_default=False,
            help="Ask this, or with '' nothing; without it, the question that the published figures are for.",
        ),
    ] = None,
    prompt_lengths: Annotated[
        str,
        typer.Option(
            "--prompt-lengths",
            metavar=_LENGTHS,
            envvar="TPUDEPLOY_PROMPT_LENGTHS",
            show_default=False,
            help="Also measure the first token after prompts of these lengths, for example 16,128,512.",
        ),
    ] = "",
    context_lengths: Annotated[
        str,
        typer.Option(
            "--context-lengths",
            metavar=_LENGTHS,
            envvar="TPUDEPLOY_CONTEXT_LENGTHS",
            show_default=False,
            help="Also measure tokens per second up to conversations of these lengths, for example 128,512.",
        ),
    ] = "",
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens",
            metavar="N",
            envvar="TPUDEPLOY_MAX_NEW_TOKENS",
            min=1,
            help="Tokens of each answer.",
        ),
    ] = 256,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            "--ignore-eos",
            envvar="TPUDEPLOY_IGNORE_EOS",
            show_default=False,
            help="Go on after the end of the answer, so that every run has --max-new-tokens.",
        ),
    ] = False,
    draft: Annotated[
        str,
        typer.Option(
            "--draft",
            metavar="NAME,...",
            envvar="TPUDEPLOY_BENCH_DRAFT",
            show_default=False,
            help="Drafters to compare: prompt-lookup, a plugin's, none; without it, none and prompt-lookup where the "
            "nets can verify drafts.",
        ),
    ] = "",
    platform: Annotated[
        str,
        typer.Option(
            "--platform",
            metavar="NAME",
            envvar="TPUDEPLOY_PLATFORM",
            show_default=False,
            help="What to call this machine in the table, for example SE7-32; without it, its devices' name.",
        ),
    ] = "",
    yes: options.Yes = False,
    hub: options.Hub = "",
    force: options.Force = False,
    verify_files: options.VerifyFiles = False,
    offline: options.Offline = False,
    toolchain: options.Toolchain = None,
    as_markdown: Annotated[
        bool,
        typer.Option("--markdown", envvar="TPUDEPLOY_MARKDOWN", show_default=False, help="Print a Markdown table."),
    ] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", envvar="TPUDEPLOY_CSV", show_default=False, help="Print CSV.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Measure how fast a model answers: first token latency and tokens per second, in the published tables' layout.

    Answers are greedy, and nothing is reused from one run to the next. Ctrl-C shows what was finished.
    """
    from tpudeploy.bench import QUESTION, CaseChoice
    from tpudeploy.cli.launching import find_target
    from tpudeploy.errors import UsageError
    from tpudeploy.launch import LaunchRequest

    if as_json + as_csv + as_markdown > 1:
        raise UsageError("--json, --csv and --markdown exclude each other.")
    choice = CaseChoice(
        question=QUESTION if question is None else question,
        prompt_lengths=options.parse_ids(prompt_lengths, "--prompt-lengths") if prompt_lengths else (),
        context_lengths=options.parse_ids(context_lengths, "--context-lengths") if context_lengths else (),
        max_new_tokens=max_new_tokens,
        ignore_eos=ignore_eos,
    )
    request = LaunchRequest(
        model=model,
        bundle=bundle,
        bmodel=bmodel,
        tokenizer_dir=tokenizer_dir,
        mask=mask,
        model_dir=model_dir,
        quant=quant,
        backend=backend,
        devices=options.parse_ids(device, "--device") if device else (),
        split=net_options.parse_split(split),
        seq_length=seq_length,
        force=force,
        verify_files=verify_files,
    )
    report, ended = _measure(
        find_target(request, yes=yes, hub=hub),
        choice,
        draft.replace(",", " ").split(),
        benchmark.Repeats(runs, warmup),
        platform,
    )
    if report.rows:
        _print(report, as_json=as_json, as_csv=as_csv, as_markdown=as_markdown)
    if ended.failure is not None:
        raise ended.failure
    if ended.interrupted:
        missing = "the tests that are missing were not finished" if report.rows else "no run was finished"
        print_note(f"interrupted: {missing}.")
        raise typer.Exit(INTERRUPTED)


def _measure(
    target: Target, choice: CaseChoice, drafters: Sequence[str], repeats: benchmark.Repeats, platform: str
) -> tuple[BenchReport, benchmark.Ended]:
    """Load the model, measure, and let it go."""
    from tpudeploy.bench import make_cases, make_report, make_variants, room_needed
    from tpudeploy.cli.progress import BuildProgress
    from tpudeploy.plugins import registry

    prompt_tokens, new_tokens = room_needed(choice, target.text())
    with BuildProgress() as line:
        line.prepare()
        model = target.load(prompt_tokens=prompt_tokens, max_new_tokens=new_tokens, progress=line)
    with model:
        cases = make_cases(choice, model)
        if choice.question and model.text is None:
            print_note(f"There is no tokenizer for {model.title}: the question is left out.")
        variants = make_variants(drafters, model, registry())
        if set(drafters) - {variant.name for variant in variants}:
            print_note(f"{model.title} has no nets that verify drafts: none are made.")
        ended = benchmark.run_all(model, cases, variants, repeats)
        report = make_report(
            model,
            ended.finished,
            registry().models,
            platform=platform,
            warmup=repeats.warmup,
            runs=repeats.runs,
            interrupted=ended.interrupted or ended.failure is not None,
        )
    return report, ended


def _print(report: BenchReport, *, as_json: bool, as_csv: bool, as_markdown: bool) -> None:
    from tpudeploy.bench.tables import to_csv, to_markdown, warning

    if as_json:
        print_json(report.model_dump(mode="json"))
    elif as_csv:
        sys.stdout.write(to_csv(report))
    elif as_markdown:
        sys.stdout.write(to_markdown(report))
    else:
        benchmark.print_report(report)
    if (as_json or as_csv) and (said := warning(report)):
        print_note(said)
