"""What each chip must have room for: exact for a bundle, estimated from the model's shapes before there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pydantic import computed_field

from tpudeploy.contracts.backend import Backend, NetMemory
from tpudeploy.contracts.base import Value
from tpudeploy.contracts.bundle import Manifest
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.loadable import Loadable, loadable_of
from tpudeploy.contracts.net import NetSet, NetSpec
from tpudeploy.contracts.quant import QuantScheme
from tpudeploy.contracts.slices import Slice, slices_of
from tpudeploy.contracts.weights import layer_shapes
from tpudeploy.launch.memory import INSTRUCTIONS_BYTES, RUNTIME_BYTES, scratch_elements
from tpudeploy.runtime.footprint import Footprint, footprints


class ChipMemory(Value):
    """Device memory of one chip, in bytes.

    :param kv_bytes: keys and values of a full conversation, and of one prefill chunk beyond it.
    :param buffers_bytes: what goes in and out of nets besides.
    :param instructions_bytes: what the chip executes.
    :param scratch_bytes: what the nets compute in.
    :param runtime_bytes: spared for driver and runtime.
    """

    chip: int
    weights_bytes: int
    kv_bytes: int
    buffers_bytes: int
    instructions_bytes: int
    scratch_bytes: int
    runtime_bytes: int = RUNTIME_BYTES

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total_bytes(self) -> int:
        """The sum."""
        nets = self.weights_bytes + self.instructions_bytes + self.scratch_bytes
        return nets + self.kv_bytes + self.buffers_bytes + self.runtime_bytes


class Requirement(Value):
    """What a model needs.

    :param exact: taken from compiled nets; otherwise estimated.
    :param quant: name of the mode, and ``seq_length`` tokens of a conversation; empty and 0 where they are not known.
    :param chips: one entry a chip.
    """

    title: str
    quant: str
    seq_length: int
    exact: bool
    chips: tuple[ChipMemory, ...]


def bundle_requirement(folder: Path | None, manifest: Manifest, backend: Backend | None) -> Requirement:
    """What a bundle needs, nothing of it loaded.

    :param folder: where its files lie; None where they are packed.
    :param backend: reads what the nets take; without one, or where it cannot tell, the files' sizes stand for it.
    :raises BundleError: a file that is missing or damaged, or a net set that cannot run.
    """
    loadable = loadable_of(manifest)
    told = backend.memory_needed(folder, loadable) if backend is not None and folder is not None else None
    nets = told or [NetMemory(weights_bytes=loadable.size_bytes // loadable.chips)] * loadable.chips
    return Requirement(
        title=f"{manifest.model}:{manifest.variant}" if manifest.variant else manifest.model,
        quant=manifest.quant.mode.value,
        seq_length=manifest.nets.seq_length,
        exact=told is not None,
        chips=_chips(manifest.nets, nets),
    )


def nets_requirement(title: str, folder: Path, nets: Loadable, backend: Backend) -> Requirement:
    """What nets need that others compiled; their cache and buffers are not among it.

    :raises BundleError: a file that is missing or damaged.
    """
    told = backend.memory_needed(folder, nets)
    found = told or [NetMemory(weights_bytes=nets.size_bytes // nets.chips)] * nets.chips
    return Requirement(
        title=title,
        quant="",
        seq_length=0,
        exact=told is not None,
        chips=tuple(_chip(chip, own, Footprint(0, 0)) for chip, own in enumerate(found)),
    )


def model_requirement(title: str, nets: NetSet, scheme: QuantScheme) -> Requirement:
    """What a model will need once it is compiled; weights, KV cache and buffers are exact.

    :param nets: the net set for chips, divided over as many as it shall run on.
    :raises BundleError: the net set cannot run.
    """
    parts = slices_of(nets)
    estimated = [_estimate(nets, parts, scheme, chip) for chip in range(nets.chips)]
    return Requirement(
        title=title,
        quant=scheme.mode.value,
        seq_length=nets.seq_length,
        exact=False,
        chips=_chips(nets, estimated),
    )


def _chips(nets: NetSet, told: Sequence[NetMemory]) -> tuple[ChipMemory, ...]:
    pairs = zip(told, footprints(nets), strict=True)
    return tuple(_chip(chip, own, buffers) for chip, (own, buffers) in enumerate(pairs))


def _chip(chip: int, own: NetMemory, buffers: Footprint) -> ChipMemory:
    return ChipMemory(
        chip=chip,
        weights_bytes=own.weights_bytes,
        instructions_bytes=own.instructions_bytes,
        scratch_bytes=own.scratch_bytes,
        kv_bytes=buffers.kv_bytes,
        buffers_bytes=buffers.other_bytes,
    )


def _estimate(nets: NetSet, parts: Sequence[Slice], scheme: QuantScheme, chip: int) -> NetMemory:
    own = [net for net in nets.nets if net.chip == chip]
    held = [part for part in parts if part.nets and part.nets[0].chip == chip]
    return NetMemory(
        weights_bytes=sum(_slice_bytes(part, nets.config, scheme) for part in held),
        instructions_bytes=len(own) * INSTRUCTIONS_BYTES,
        scratch_bytes=max(_scratch_bytes(net, nets.config, scheme) for net in own),
    )


def _slice_bytes(part: Slice, config: DecoderConfig, scheme: QuantScheme) -> int:
    if part.shard is not None:
        config = part.shard.config(config)
    table = (config.vocab_size, config.hidden_size)
    shapes = layer_shapes(config) | {
        "embedding.weight": table,
        "final_norm.weight": (config.hidden_size,),
        "lm_head.weight": table,
    }
    plain = scheme.activation.itemsize_bytes
    quantized = scheme.of_kind(part.nets[0].kind).weight_bytes_per_element
    total = 0.0
    for name in part.weights:
        shape = shapes[name if part.layer is None else name.split(".", 2)[2]]
        linear = len(shape) == 2 and name != "embedding.weight"  # the embedding is never quantized
        total += math.prod(shape) * (quantized if linear else plain)
    return int(total)


def _scratch_bytes(net: NetSpec, config: DecoderConfig, scheme: QuantScheme) -> int:
    """More than compiled nets were seen to take, see :func:`scratch_elements`."""
    if not net.kind.is_block:
        elements = sum(spec.elements for spec in (*net.inputs, *net.outputs))
    else:
        elements = scratch_elements(config, net.stage.new_tokens, net.stage.cache_length)
    return elements * max(scheme.activation.itemsize_bytes, DType.F16.itemsize_bytes)
