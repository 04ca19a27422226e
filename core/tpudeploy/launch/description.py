"""One model in detail: its decoder, the nets that it is cut into, and its patches."""

from __future__ import annotations

from pathlib import Path

from tpudeploy.compile.plan import model_patches
from tpudeploy.compile.source import open_source, parse_model
from tpudeploy.contracts.adapter import ModelAdapter
from tpudeploy.contracts.base import Value
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.net import NetSet, NetSpec
from tpudeploy.contracts.net_plan import DEFAULT_SEQ_LENGTH, NetPlan
from tpudeploy.contracts.patch import Patch, apply_patches
from tpudeploy.contracts.quant import parse_quant_mode, resolve_quant
from tpudeploy.launch.catalogue import VariantEntry, describe_variant, find_bundles, quant_entries
from tpudeploy.plugins import PluginRegistry
from tpudeploy.settings import Settings


class NetGroup(Value):
    """Nets that differ only in their layer.

    :param name: their name, with ``i`` for the layer.
    :param count: how many there are.
    """

    name: str
    kind: str
    stage: str
    count: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class ModelDescription(Value):
    """Everything that ``show`` tells.

    :param config: the decoder as published.
    :param quant: the mode that the nets are given for.
    :param seq_length: the sequence length that nets and patches are given for.
    """

    entry: VariantEntry
    config: DecoderConfig
    quant: str
    seq_length: int
    patches: tuple[Patch, ...]
    nets: tuple[NetGroup, ...]


def describe_model(
    text: str,
    registry: PluginRegistry,
    settings: Settings,
    *,
    model_dir: Path | None = None,
    quant: str = "",
    seq_length: int | None = None,
) -> ModelDescription:
    """Describe a variant, or the user's own checkpoint in ``model_dir``.

    :raises UnknownNameError: no such model or mode.
    :raises SequenceTooLongError: longer than the model was made for.
    :raises CheckpointError: ``model_dir`` holds no checkpoint of this family.
    """
    adapter, variant = parse_model(text, registry)
    entry = describe_variant(adapter, variant, settings, find_bundles(settings))
    config = variant.config
    if model_dir is not None:
        config = open_source(adapter, variant, settings, model_dir=model_dir).config
    length = seq_length or min(DEFAULT_SEQ_LENGTH, config.seq_length)
    if model_dir is not None:
        entry = _of_folder(entry, adapter, config, model_dir, length)
    mode = parse_quant_mode(quant) if quant else adapter.default_quant
    patches = model_patches(adapter, config, length, registry)
    patched = apply_patches(config, patches)
    activation = resolve_quant(mode, adapter.half).activation
    nets = adapter.slices(patched, NetPlan(seq_length=length), activation)
    return ModelDescription(
        entry=entry, config=config, quant=mode.value, seq_length=length, patches=patches, nets=group_nets(nets)
    )


def group_nets(nets: NetSet) -> tuple[NetGroup, ...]:
    """Put the nets of all layers together, in the order of the first."""
    groups: dict[str, list[NetSpec]] = {}
    for net in nets.nets:
        groups.setdefault(net.pattern, []).append(net)
    return tuple(
        NetGroup(
            name=name,
            kind=members[0].kind.value,
            stage=str(members[0].stage),
            count=len(members),
            inputs=tuple(str(spec) for spec in members[0].inputs),
            outputs=tuple(str(spec) for spec in members[0].outputs),
        )
        for name, members in groups.items()
    )


def _of_folder(
    entry: VariantEntry, adapter: ModelAdapter, config: DecoderConfig, folder: Path, seq_length: int
) -> VariantEntry:
    return entry.model_copy(
        update={
            "name": adapter.name,
            "variant": "",
            "default": False,
            "note": "",
            "parameters": config.parameters,
            "context_tokens": config.seq_length,
            "estimate_tokens": seq_length,
            "quant": quant_entries(adapter, config, seq_length),
            "checkpoint": folder,
            "ships_with_plugin": False,
            "fetchable": False,
            "bundles": (),
        }
    )
