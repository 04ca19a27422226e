"""Inputs for every net of a slice, and what the torch reference makes of them.

The reference runs the published form: interleaved rotary pairs, a boolean mask, fused attention. The inputs of the
exported net are the same numbers in the patched form, with garbage in the cache rows that the mask hides.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tpudeploy.checkpoint.weights import ModelWeights
from tpudeploy.contracts.decoder import DecoderConfig, MaskForm, RopeLayout
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.net import MASK_VALUE, NetKind, NetSpec
from tpudeploy.contracts.slices import Slice
from tpudeploy.graph.blocks import Block, RotaryTable
from tpudeploy.graph.reference import final_norm, load_block
from tpudeploy.graph.rope import half_split_order


@dataclass(frozen=True)
class SliceCase:
    """One net with inputs and the outputs that the reference expects, in the order of the net's outputs."""

    net: NetSpec
    inputs: dict[str, Array]
    outputs: tuple[Array, ...]


@torch.no_grad()
def reference_cases(part: Slice, weights: ModelWeights, config: DecoderConfig) -> Iterator[SliceCase]:
    """One case a net; the reference's weights are freed before the first is handed out.

    :param config: the decoder with its patches applied.
    """
    cases: list[SliceCase]
    if part.layer is not None:
        block = load_block(weights, part.layer)
        cases = [_block_case(net, block, config) for net in part.nets]
        del block
    elif part.nets[0].kind is NetKind.LM_HEAD:
        cases = _head_cases(part, weights)
    else:
        cases = _embedding_cases(part, weights)
    while cases:
        yield cases.pop(0)


def _generator(net: NetSpec) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(net.name.encode()))


def _embedding_cases(part: Slice, weights: ModelWeights) -> list[SliceCase]:
    table = weights.read("embedding.weight")
    cases = []
    for net in part.nets:
        ids = torch.randint(weights.config.vocab_size, net.inputs[0].shape, generator=_generator(net))
        cases.append(SliceCase(net, {"input_ids": ids.int().numpy()}, (table[ids].float().numpy(),)))
    return cases


def _head_cases(part: Slice, weights: ModelWeights) -> list[SliceCase]:
    norm, matrix = final_norm(weights), weights.read_f32("lm_head.weight")
    cases = []
    for net in part.nets:
        states = torch.randn(net.inputs[0].shape, generator=_generator(net))
        cases.append(SliceCase(net, {"hidden_states": states.numpy()}, ((norm(states) @ matrix.T).numpy(),)))
    return cases


def _block_case(net: NetSpec, block: Block, config: DecoderConfig) -> SliceCase:
    random = _generator(net)
    new, cache = net.stage.new_tokens, net.stage.cache_length
    cached = cache // 2 if cache > 1 else 0
    states = torch.randn(net.input("input_states").shape, generator=random)
    positions = torch.arange(cached, cached + new).clamp(max=max(cache, new) - 1).unsqueeze(0)
    hidden = _hidden(new, cache, cached)
    history = None
    if cache:
        shape = net.input("history_k").shape
        history = (torch.randn(shape, generator=random), torch.randn(shape, generator=random))
    # Positions come from the last row at most, so the table need not be longer.
    cos, sin = RotaryTable(block.attention.config, int(positions.max()) + 1)(positions)
    published = block.attention.config.form.mask
    mask = hidden if published is MaskForm.MASKED_FILL else _additive(hidden)
    out, key, value = block(states, cos, sin, mask, history)
    inputs = {
        "input_states": states.numpy(),
        "position_ids": positions.int().numpy(),
        "attention_mask": _additive(hidden).numpy(),
    }
    if history is not None:
        inputs |= {"history_k": _keys(history[0], block, config).numpy(), "history_v": history[1].numpy()}
    return SliceCase(net, inputs, (out.numpy(), _keys(key, block, config).numpy(), value.numpy()))


def _hidden(new: int, cache: int, cached: int) -> Tensor:
    """(1, 1, new, cache + new), true where hidden: cache rows beyond ``cached``, and later new tokens."""
    hidden = torch.zeros(new, cache + new, dtype=torch.bool)
    hidden[:, cached:cache] = True
    hidden[:, cache:] = torch.ones(new, new, dtype=torch.bool).triu(1)
    return hidden[None, None]


def _additive(hidden: Tensor) -> Tensor:
    return torch.zeros(hidden.shape).masked_fill(hidden, MASK_VALUE)


def _keys(keys: Tensor, block: Block, config: DecoderConfig) -> Tensor:
    """Keys (1, n, kv_heads, head_dim) of the published layout in the patched one."""
    published: RopeLayout = block.attention.config.form.rope_layout
    if published is config.form.rope_layout:
        return keys
    order = half_split_order(config.head_dim, config.rotary_dim)
    if config.form.rope_layout is RopeLayout.INTERLEAVED:
        order = torch.argsort(order)
    return keys[..., order].contiguous()
