"""Slices: what of a model shares one weight file, what it is exported as, and how exact it came out."""

from __future__ import annotations

from tpudeploy.contracts.adapter import Tolerance
from tpudeploy.contracts.base import Value
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.net import NetKind, NetSet, NetSpec
from tpudeploy.contracts.weights import layer_shapes


class Slice(Value):
    """What shares one weight file: its nets and the canonical weights that they need.

    :param name: file stem: ``embedding``, ``layer_000``, ``lm_head``.
    :param layer: which decoder layer, or None.
    """

    name: str
    layer: int | None
    nets: tuple[NetSpec, ...]
    weights: tuple[str, ...]


class SliceCheck(Value):
    """How one exported net compares with the torch reference.

    :param max_error: largest absolute difference of any output, divided by the output's largest magnitude where that
        is over one.
    :param cosine: smallest cosine similarity of any output.
    """

    net: str
    max_error: float
    cosine: float


class ModelExport(Value):
    """What to export: a decoder with its patches applied, and how exact its slices must be."""

    config: DecoderConfig
    seq_length: int
    tolerance: Tolerance


def slices_of(net_set: NetSet) -> list[Slice]:
    """Group a net set by shared weights, in the order in which a token passes."""
    embeddings = (*net_set.of_kind(NetKind.EMBEDDING_ONE), *net_set.of_kind(NetKind.EMBEDDING))
    names = tuple(layer_shapes(net_set.config))
    layers = [
        Slice(
            name=f"layer_{layer:03d}",
            layer=layer,
            nets=net_set.shared_by_layer(layer),
            weights=tuple(f"layers.{layer}.{name}" for name in names),
        )
        for layer in range(net_set.config.num_layers)
    ]
    heads = tuple(net_set.of_kind(NetKind.LM_HEAD))
    return [
        Slice(name="embedding", layer=None, nets=embeddings, weights=("embedding.weight",)),
        *layers,
        Slice(name="lm_head", layer=None, nets=heads, weights=("final_norm.weight", "lm_head.weight")),
    ]
