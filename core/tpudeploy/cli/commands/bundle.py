"""``tpudeploy bundle``: a compiled model as one file, to be taken to a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpudeploy.cli import completion, net_options, options
from tpudeploy.cli.terminal import format_bytes, print_json, print_line, print_note

if TYPE_CHECKING:
    from tpudeploy.compile.plan import BuildPlan
    from tpudeploy.contracts.bundle import Verification
    from tpudeploy.pack import Packed
    from tpudeploy.runtime.bundle_store import Bundle

From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="PATH",
        envvar="TPUDEPLOY_FROM",
        help="Pack this bundle, a folder or its name in the local store, instead of a model.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        envvar="TPUDEPLOY_OUTPUT",
        help="A new file that ends in .tpubundle, or a new folder; without it, a file here named after the bundle.",
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        envvar="TPUDEPLOY_VERIFY",
        show_default=False,
        help="Compare it with the torch reference first, and record the result; exit code 1 where it is worse.",
    ),
]


Model = Annotated[
    str,
    typer.Argument(
        metavar="[MODEL]",
        show_default=False,
        help="For example chatglm3 or chatglm3:demo; not needed with --from.",
        autocompletion=completion.models,
    ),
]
_OF_A_BUILD = {
    "model_dir": "--model-dir",
    "prefill": "--prefill",
    "decode_cache": "--decode-cache",
    "verify_nets": "--verify-nets",
}
"""What can only be asked of a bundle that is still to be made: parameters and their options."""


def bundle(
    context: typer.Context,
    model: Model = "",
    source: From = None,
    quant: options.Quant = "",
    seq_length: options.SeqLength = None,
    prefill: net_options.Prefill = "",
    decode_cache: net_options.DecodeCache = "",
    verify_nets: net_options.VerifyNets = "",
    devices: net_options.Chips = 1,
    split: net_options.SplitBy = "tensor",
    bundle_format: net_options.Format = "bmodel",
    jobs: options.Jobs = None,
    output: Output = None,
    model_dir: options.ModelDir = None,
    verify: Verify = False,
    backend: options.Backend = "auto",
    yes: options.Yes = False,
    hub: options.Hub = "",
    force: options.Force = False,
    offline: options.Offline = False,
    toolchain: options.Toolchain = None,
    as_json: options.Json = False,
) -> None:
    """Pack a model into one file that runs on a device: nets, tokenizer and manifest. Compiles it first if need be.

    The device needs neither torch nor compiler: `tpudeploy run --bundle FILE`.
    """
    from tpudeploy.errors import UsageError

    if (source is None) == (not model):
        raise UsageError("name either a model or --from a bundle.", hint="`tpudeploy list-models` names both.")
    if source is not None:
        if verify:
            raise UsageError("--verify needs the model's checkpoint.", hint="Name the model instead of --from.")
        from tpudeploy.launch.usage import check_agreement

        for parameter, option in _OF_A_BUILD.items():
            if _is_given(context, parameter):
                raise UsageError(f"--from and {option} exclude each other: a bundle is packed as it is.")
        opened = _open(source)
        check_agreement(
            opened.folder,
            opened.manifest,
            quant=quant,
            seq_length=seq_length,
            chips=devices if _is_given(context, "devices") else None,
            split=split if _is_given(context, "split") else "",
            form=bundle_format if _is_given(context, "bundle_format") else "",
        )
        _report(*_pack(opened, output, None, force=force), as_json=as_json)
        return
    from tpudeploy.cli.building import parse_format, plan

    planned = plan(
        model,
        model_dir,
        net_options.parse_nets(seq_length, prefill, decode_cache, devices, split, verify_nets),
        quant=quant,
        form=parse_format(bundle_format),
        jobs=jobs,
        yes=yes,
        hub=hub,
    )
    opened = _build(planned, output, force=force)
    verification = _verify(planned, opened, backend) if verify else None
    _report(*_pack(opened, output, verification, force=force), as_json=as_json)
    if verification is not None and verification.outcome.value == "worse than expected":
        raise typer.Exit(1)


def _is_given(context: typer.Context, parameter: str) -> bool:
    """Whether an option was given, on the command line or by its variable, rather than left at its default."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name != "DEFAULT"


def _open(source: Path) -> Bundle:
    from tpudeploy.errors import UsageError
    from tpudeploy.launch.bundles import locate_bundle
    from tpudeploy.runtime.bundle_store import open_bundle
    from tpudeploy.settings import load_settings

    folder = locate_bundle(source, load_settings())
    if not folder.is_dir():
        raise UsageError(f"{folder} is one file already.", hint="Copy it as it is.")
    return open_bundle(folder, contents=False)


def _build(planned: BuildPlan, output: Path | None, *, force: bool) -> Bundle:
    from tpudeploy.cli.building import build
    from tpudeploy.launch.packing import check_output
    from tpudeploy.runtime.bundle_store import open_bundle

    check_output(output, planned.title, force=force)  # before hours of work
    return open_bundle(build(planned).folder, contents=False)


def _verify(planned: BuildPlan, opened: Bundle, backend: str) -> Verification:
    from tpudeploy.cli.progress import BuildProgress
    from tpudeploy.launch.packing import verify_bundle
    from tpudeploy.plugins import registry
    from tpudeploy.settings import load_settings

    with BuildProgress() as line:
        return verify_bundle(planned, opened, load_settings(), registry(), backend=backend, progress=line)


def _pack(
    opened: Bundle, output: Path | None, verification: Verification | None, *, force: bool
) -> tuple[Packed, Verification | None]:
    from tpudeploy.cli.bundles import copy_line
    from tpudeploy.cli.progress import LiveLine
    from tpudeploy.launch.packing import pack

    with LiveLine() as line:
        progress = copy_line(line, "packing")
        packed = pack(opened, output, verification=verification, force=force, progress=progress)
    return packed, verification or opened.manifest.verification


def _report(packed: Packed, verification: Verification | None, *, as_json: bool) -> None:
    if as_json:
        told: dict[str, Any] = {"bundle": str(packed.path), "size_bytes": packed.size_bytes}
        told |= {"sha256": packed.sha256} if packed.sha256 else {}
        print_json(told | {"verification": verification.model_dump(mode="json") if verification else None})
        return
    from tpudeploy.cli.bundle_view import describe_verification

    sha = f", SHA-256 {packed.sha256}" if packed.sha256 else ""
    print_note(f"{format_bytes(packed.size_bytes)}{sha}, verified: {describe_verification(verification)}.")
    print_line(str(packed.path))
