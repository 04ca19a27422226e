"""``tpudeploy export``: a model as checked ONNX slices."""

from __future__ import annotations

from tpudeploy.cli import net_options, options
from tpudeploy.cli.terminal import print_line, print_note


def export(
    model: options.Model,
    output: options.Output,
    model_dir: options.ModelDir = None,
    seq_length: options.SeqLength = None,
    prefill: net_options.Prefill = "",
    decode_cache: net_options.DecodeCache = "",
    verify_nets: net_options.VerifyNets = "",
    devices: net_options.Chips = 1,
    split: net_options.SplitBy = "tensor",
    yes: options.Yes = False,
    hub: options.Hub = "",
    offline: options.Offline = False,
) -> None:
    """Write a model as ONNX slices in float32, each checked against the torch reference."""
    from tpudeploy.cli.building import plan
    from tpudeploy.cli.progress import BuildProgress
    from tpudeploy.compile.export_model import export_model
    from tpudeploy.contracts.bundle import BundleFormat
    from tpudeploy.launch.observers import with_observers
    from tpudeploy.plugins import registry

    nets = net_options.parse_nets(seq_length, prefill, decode_cache, devices, split, verify_nets)
    planned = plan(model, model_dir, nets, quant="none", form=BundleFormat.ONNX, yes=yes, hub=hub)
    with BuildProgress() as line:
        checks = export_model(planned, output, with_observers(line, registry()))
    worst = max((check.max_error for check in checks), default=0.0)
    print_note(f"{len(checks)} nets, each compared with the torch reference: largest difference {worst:.2g}.")
    print_line(str(output))
