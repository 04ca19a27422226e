"""``tpudeploy compile``: a model as a bundle for a device."""

from __future__ import annotations

from tpudeploy.cli import net_options, options
from tpudeploy.cli.terminal import format_bytes, print_json, print_line, print_note


def compile_model(
    model: options.Model,
    quant: options.Quant = "",
    seq_length: options.SeqLength = None,
    prefill: net_options.Prefill = "",
    decode_cache: net_options.DecodeCache = "",
    verify_nets: net_options.VerifyNets = "",
    devices: net_options.Chips = 1,
    split: net_options.SplitBy = "tensor",
    bundle_format: net_options.Format = "bmodel",
    jobs: options.Jobs = None,
    keep_intermediate: net_options.KeepIntermediate = False,
    output: options.OptionalOutput = None,
    model_dir: options.ModelDir = None,
    yes: options.Yes = False,
    hub: options.Hub = "",
    force: options.Force = False,
    offline: options.Offline = False,
    toolchain: options.Toolchain = None,
    as_json: options.Json = False,
) -> None:
    """Compile a model into a bundle; prints the bundle's folder.

    Interrupted, the same command goes on where it stopped. Ask for what is there already, and it is not made again.
    """
    from tpudeploy.cli.building import build, parse_format, plan
    from tpudeploy.launch.delivery import check_output, copy_bundle

    if output is not None:
        check_output(output)  # before hours of work
    planned = plan(
        model,
        model_dir,
        net_options.parse_nets(seq_length, prefill, decode_cache, devices, split, verify_nets),
        quant=quant,
        form=parse_format(bundle_format),
        jobs=jobs,
        keep_intermediate=keep_intermediate,
        yes=yes,
        hub=hub,
    )
    built = build(planned, force=force)
    folder = copy_bundle(built.folder, output) if output is not None else built.folder
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print_note(f"{planned.title}: {format_bytes(size)}{', compiled earlier' if built.reused else ''}.")
    if as_json:
        checks = [check.model_dump(mode="json") for check in built.checks]
        print_json({"bundle": str(folder), "reused": built.reused, "size_bytes": size, "checks": checks})
    else:
        print_line(str(folder))
