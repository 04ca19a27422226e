"""What a net has to do: bytes to move and operations to compute, by arithmetic on its shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.net import LayerPart, NetKind, NetSet, NetSpec, Split
from tpudeploy.contracts.quant import QuantScheme
from tpudeploy.contracts.shard import shards
from tpudeploy.contracts.weights import layer_shapes

_FFN_WEIGHTS = frozenset({"ffn_norm", "gate", "up", "down", "post_ffn_norm"})


class Work(Value):
    """What one launch of a net moves and computes.

    :param weight_bytes: weights, without scales and zero points: each is needed once.
    :param scale_bytes: scales and zero points.
    :param history_bytes: keys and values that are read from the cache.
    :param activation_bytes: what operators pass to each other, were each result written once.
    :param score_bytes: the same of attention scores.
    :param operations: of matrix products; a multiplication with its addition counts as two.
    """

    weight_bytes: int
    scale_bytes: int = 0
    history_bytes: int = 0
    activation_bytes: int = 0
    score_bytes: int = 0
    operations: int = 0

    @property
    def needed_bytes(self) -> int:
        """What cannot be left out, however a net is written: weights with their scales, and the cache."""
        return self.weight_bytes + self.scale_bytes + self.history_bytes


def net_work(net: NetSpec, nets: NetSet, scheme: QuantScheme) -> Work:
    """The work of one net of a set.

    :param scheme: how weights and activations are stored on the chip.
    """
    config = nets.config
    if nets.split is Split.TENSOR:
        config = list(shards(config, nets.chips))[net.chip].config(config)
    width = scheme.activation.itemsize_bytes
    if net.kind in (NetKind.EMBEDDING, NetKind.EMBEDDING_ONE):
        return Work(weight_bytes=net.stage.new_tokens * config.hidden_size * width)
    if net.kind is NetKind.LM_HEAD:
        return _head(net, config, scheme.of_kind(net.kind))
    return _block(net, config, scheme)


def _head(net: NetSpec, config: DecoderConfig, scheme: QuantScheme) -> Work:
    linear, tokens = config.vocab_size * config.hidden_size, net.stage.new_tokens
    weights, scales = _weights(linear, scheme)
    return Work(
        weight_bytes=weights,
        scale_bytes=scales,
        activation_bytes=tokens * (config.vocab_size + 2 * config.hidden_size) * scheme.activation.itemsize_bytes,
        operations=2 * linear * tokens,
    )


def _block(net: NetSpec, config: DecoderConfig, scheme: QuantScheme) -> Work:
    new, cache, width = net.stage.new_tokens, net.stage.cache_length, scheme.activation.itemsize_bytes
    shapes = _held(net.part, layer_shapes(config))
    linear = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 2)
    plain = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 1)
    weights, scales = _weights(linear, scheme)
    states = 2 * config.hidden_size + (3 * config.ffn_size if net.part is not LayerPart.ATTENTION else 0)
    scores = history = 0
    if net.part is not LayerPart.FFN:
        states += 2 * config.hidden_size + config.q_size + 2 * config.kv_size
        scores = config.num_heads * (cache + new)
        history = 2 * cache * config.kv_size * width
    return Work(
        weight_bytes=weights + plain * width,
        scale_bytes=scales,
        history_bytes=history,
        activation_bytes=new * states * width,
        score_bytes=new * scores * width,
        # Scores and their sums over values: each query element meets each key, and each value, once.
        operations=2 * new * linear + 4 * new * scores * config.head_dim,
    )


def _held(part: LayerPart, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Weights of the part of a layer that a net computes."""
    if part is LayerPart.WHOLE:
        return dict(shapes)
    ffn = part is LayerPart.FFN
    return {name: shape for name, shape in shapes.items() if (name.partition(".")[0] in _FFN_WEIGHTS) == ffn}


def _weights(elements: int, scheme: QuantScheme) -> tuple[int, int]:
    """Bytes of the weights of linear layers, and of their scales and zero points."""
    weights = elements * scheme.weight_bits // 8
    return weights, int(elements * scheme.weight_bytes_per_element) - weights
