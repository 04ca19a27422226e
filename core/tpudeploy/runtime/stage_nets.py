"""Finding the nets of each stage in a net set, and refusing a set that cannot run."""

from __future__ import annotations

from dataclasses import dataclass

from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import NetKind, NetSet, NetSpec, Stage
from tpudeploy.errors import BundleError

_HINT = "Compile the bundle again, or report the plugin that cut this model."


@dataclass(frozen=True)
class StageNets:
    """The nets of one pass.

    :param embedding: for ``stage.new_tokens`` tokens.
    :param blocks: one a layer, in order.
    """

    stage: Stage
    embedding: NetSpec
    blocks: tuple[NetSpec, ...]


def find_stages(nets: NetSet) -> tuple[StageNets, ...]:
    """Every stage that blocks exist in, smallest first (by new tokens, then by cache length).

    :raises BundleError: a net is missing or not of the shape that its stage means, layers are on other chips in
        one stage than in another, or no stage reaches the whole sequence length.
    """
    stages: dict[Stage, StageNets] = {}
    for kind in NetKind:
        if kind.is_block:
            for stage in nets.stages(kind):
                stages.setdefault(stage, _stage_nets(nets, kind, stage))
    found = sorted(stages.values(), key=lambda nets: (nets.stage.new_tokens, nets.stage.cache_length))
    # The last token of a full conversation is computed over all those before it.
    if not any(nets_.stage.cache_length >= nets.seq_length - 1 for nets_ in found):
        raise BundleError(f"no block net has a cache for {nets.seq_length} tokens.", hint=_HINT)
    if len({tuple(block.chip for block in nets_.blocks) for nets_ in found}) > 1:
        raise BundleError("the stages of this bundle put the same layer on different chips.", hint=_HINT)
    return tuple(found)


def find_heads(nets: NetSet) -> dict[int, NetSpec]:
    """Output layers by the number of tokens that they take.

    :raises BundleError: there is none for one token.
    """
    heads = {net.stage.new_tokens: net for net in nets.of_kind(NetKind.LM_HEAD)}
    if 1 not in heads:
        raise BundleError("the bundle has no output layer (lm_head) for one token.", hint=_HINT)
    return heads


def _stage_nets(nets: NetSet, kind: NetKind, stage: Stage) -> StageNets:
    by_layer = {net.layer: net for net in nets.of_kind(kind) if net.stage == stage}
    missing = [layer for layer in range(nets.config.num_layers) if layer not in by_layer]
    if missing:
        raise BundleError(f"the bundle has no {kind.value} net of stage {stage} for layer {missing[0]}.", hint=_HINT)
    blocks = tuple(by_layer[layer] for layer in range(nets.config.num_layers))
    for block in blocks:
        _check_inputs(block)
    return StageNets(stage, _embedding(nets, stage.new_tokens), blocks)


def _embedding(nets: NetSet, tokens: int) -> NetSpec:
    for kind in (NetKind.EMBEDDING_ONE, NetKind.EMBEDDING):
        for net in nets.of_kind(kind):
            if net.stage.new_tokens == tokens:
                return net
    raise BundleError(f"the bundle has no embedding for {tokens} tokens.", hint=_HINT)


def _check_inputs(net: NetSpec) -> None:
    new, total = net.stage.new_tokens, net.stage.new_tokens + net.stage.cache_length
    shapes = {spec.name: (spec.shape, spec.dtype) for spec in net.inputs}
    if shapes.get("position_ids") != ((1, new), DType.I32):
        raise BundleError(f"net {net.name} does not take position ids as i32[1, {new}].", hint=_HINT)
    mask = shapes.get("attention_mask")
    if mask is None or mask[0] != (1, 1, new, total) or not mask[1].is_float:
        raise BundleError(f"net {net.name} does not take a mask of [1, 1, {new}, {total}].", hint=_HINT)
