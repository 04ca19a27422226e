"""``tpudeploy estimate``: how fast a model will be on chips, without one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tpudeploy.cli import net_options, options
from tpudeploy.cli.terminal import print_json, print_note

if TYPE_CHECKING:
    from tpudeploy.contracts.net_plan import NetPlan
    from tpudeploy.estimate.report import Estimate, EstimateOptions

_MOST_HOST_MS = 60_000


def estimate(
    model: options.OptionalModel = "",
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="PATH",
            # Not the variable of `run`: whoever has set that may still ask after a model by its name.
            envvar="TPUDEPLOY_ESTIMATE_BUNDLE",
            show_default=False,
            help="A compiled bundle, by what its compiler said: a folder, a file, or its name in the local store.",
        ),
    ] = None,
    model_dir: options.ModelDir = None,
    quant: options.Quant = "",
    seq_length: options.SeqLength = None,
    prefill: net_options.Prefill = "",
    decode_cache: net_options.DecodeCache = "",
    verify_nets: net_options.VerifyNets = "",
    devices: net_options.Chips = 1,
    split: net_options.SplitBy = "tensor",
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt",
            metavar="TOKENS,...",
            envvar="TPUDEPLOY_ESTIMATE_PROMPT",
            show_default=False,
            help="Lengths of prompts to give the first token for; without it, 128 and 512.",
        ),
    ] = "",
    context: Annotated[
        str,
        typer.Option(
            "--context",
            metavar="TOKENS,...",
            envvar="TPUDEPLOY_ESTIMATE_CONTEXT",
            show_default=False,
            help="Lengths of conversations to give further tokens for; without it, those that the nets are made for.",
        ),
    ] = "",
    tokens_per_pass: Annotated[
        float | None,
        typer.Option(
            "--tokens-per-pass",
            metavar="N",
            envvar="TPUDEPLOY_TOKENS_PER_PASS",
            show_default=False,
            help="Tokens that a pass with drafts gives, for example 2.5: how fast speculation is then.",
        ),
    ] = None,
    host_ms: Annotated[
        float | None,
        typer.Option(
            "--host-ms",
            metavar="MS",
            envvar="TPUDEPLOY_HOST_MS",
            show_default=False,
            help="Time of the host in each pass; without it 0.3, measured on a desktop processor.",
        ),
    ] = None,
    chart: Annotated[
        Path | None,
        typer.Option(
            "--chart",
            metavar="FILE.html",
            envvar="TPUDEPLOY_CHART",
            show_default=False,
            help="Also draw where the time goes: one HTML file, with nothing in it that is loaded from elsewhere.",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Estimate first token, tokens per second and memory on BM1684X chips, for a bundle or for a model by its name.

    Nothing is fetched, built or run. A bundle tells what its compiler modelled; a model by its name is computed from
    its shapes.
    """
    from tpudeploy.cli.estimate_view import print_estimate, write_chart
    from tpudeploy.errors import UsageError

    if (bundle is None) == (not model):
        raise UsageError("name either a model or a --bundle.", hint="`tpudeploy list-models` names both.")
    if chart is not None and chart.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--chart writes HTML, and {chart} does not end in .html.")
    wanted = _options(prompt, context, host_ms, tokens_per_pass)
    nets = net_options.parse_nets(seq_length, prefill, decode_cache, devices, split, verify_nets)
    if bundle is None:
        found = _of_model(model, model_dir, nets, quant, wanted)
    else:
        shaping = {"--prefill": prefill, "--decode-cache": decode_cache, "--verify-nets": verify_nets}
        for option, value in ({"--model-dir": model_dir} | shaping).items():
            if value:
                raise UsageError(f"--bundle and {option} exclude each other: a bundle has its nets.")
        found = _of_bundle(bundle, quant, seq_length, wanted)
    if chart is not None:
        write_chart(found, chart)
        print_note(f"chart: {chart}")
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_estimate(found)


def _options(prompt: str, context: str, host_ms: float | None, tokens_per_pass: float | None) -> EstimateOptions:
    from tpudeploy.errors import UsageError
    from tpudeploy.estimate.chip import HOST_S
    from tpudeploy.estimate.report import EstimateOptions

    if host_ms is not None and not 0 <= host_ms <= _MOST_HOST_MS:
        raise UsageError(f"--host-ms takes milliseconds between 0 and {_MOST_HOST_MS}, not {host_ms:g}.")
    return EstimateOptions(
        prompts=options.parse_ids(prompt, "--prompt") if prompt else (),
        contexts=options.parse_ids(context, "--context") if context else (),
        host_s=HOST_S if host_ms is None else host_ms / 1e3,
        tokens_per_pass=tokens_per_pass,
    )


def _of_model(
    model: str, model_dir: Path | None, nets: net_options.NetChoice, quant: str, wanted: EstimateOptions
) -> Estimate:
    from dataclasses import replace

    from tpudeploy.launch.estimating import ModelQuestion, estimate_model
    from tpudeploy.launch.lengths import choose_seq_length
    from tpudeploy.plugins import registry

    def plan(model_length: int) -> NetPlan:
        if nets.seq_length is not None or nets.prefill or nets.decode_cache or nets.verify:
            return nets.plan(model_length)
        longest = max((*wanted.prompts, *wanted.contexts), default=1)
        length = choose_seq_length(None, model_length, prompt_tokens=longest, max_new_tokens=1)
        return replace(nets, seq_length=length).plan(model_length)

    question = ModelQuestion(model=model, model_dir=model_dir, quant=quant, chips=nets.chips, split=nets.split)
    return estimate_model(question, plan, wanted, registry())


def _of_bundle(bundle: Path, quant: str, seq_length: int | None, wanted: EstimateOptions) -> Estimate:
    from tpudeploy.launch.estimating import estimate_bundle
    from tpudeploy.plugins import registry
    from tpudeploy.settings import load_settings

    return estimate_bundle(bundle, wanted, load_settings(), registry(), quant=quant, seq_length=seq_length)
