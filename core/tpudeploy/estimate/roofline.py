"""How long a net takes, from its shapes alone.

A net of quantized weights loads them and computes its matrix products at once, so the longer of the two counts; one of
16-bit weights does one after the other, as the compiler schedules it. What passes between operators comes on top,
and so does a fixed overhead::

    seconds = max(load, products) + between + overhead
    load = weights / rate + scales / rate + cache / rate
"""

from __future__ import annotations

from tpudeploy.contracts.decoder import DecoderConfig, RopeLayout
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import LayerPart, NetSpec
from tpudeploy.contracts.quant import QuantScheme
from tpudeploy.estimate.chip import BM1684X, ChipModel
from tpudeploy.estimate.work import Work


def load_s(work: Work, chip: ChipModel = BM1684X) -> float:
    """Seconds in which weights and cache are loaded."""
    return work.weight_bytes / chip.weights + work.scale_bytes / chip.scales + work.history_bytes / chip.history


def products_s(work: Work, activation: DType, chip: ChipModel = BM1684X) -> float:
    """Seconds in which matrix products are computed."""
    return work.operations / chip.operations(activation)


def between_s(work: Work, chip: ChipModel = BM1684X) -> float:
    """Seconds in which operators of a net pass their results on."""
    return work.activation_bytes / chip.activations + work.score_bytes / chip.scores


def roofline_s(
    net: NetSpec, work: Work, config: DecoderConfig, scheme: QuantScheme, chip: ChipModel = BM1684X
) -> float:
    """Seconds of one launch.

    :param config: the decoder with its patches applied: how its rotary embedding is written matters.
    :param scheme: how weights and activations are stored on the chip.
    """
    load, products = load_s(work, chip), products_s(work, scheme.activation, chip)
    seconds = (max(load, products) if scheme.group_size else load + products) + between_s(work, chip)
    if not net.kind.is_block:
        return seconds
    tokens = net.stage.new_tokens
    seconds += _overhead_s(net, chip)
    if config.form.rope_layout is RopeLayout.INTERLEAVED and net.part is not LayerPart.FFN:
        seconds += tokens * chip.interleaved_s * (1 if tokens <= chip.interleaved_tokens else 2)
    return seconds


def _overhead_s(net: NetSpec, chip: ChipModel) -> float:
    """Of a layer's overhead what the net's part has: for one token all of it lies in attention and its cache."""
    if net.stage.new_tokens == 1:
        return 0.0 if net.part is LayerPart.FFN else chip.overhead_s
    return chip.tokens_overhead_s * (1.0 if net.part is LayerPart.WHOLE else 0.5)
