"""The weights that training starts from: random ones, and among them a circuit that copies.

Half of what the demo model does is copying: a city into a tool call, a text into its repetition, code into its edited
form. Two attention heads do that together (an "induction" circuit, see Olsson et al. 2022, arXiv:2209.11895): one in
the first layer looks at the previous token, one in the second finds where the present token occurred before and looks
at what followed. Found by training alone they cost more than everything else; so they are laid out beforehand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.graph.decoder import Decoder, parameter_name

_LOOK_BACK_STRENGTH = 6.0
_LOOK_BACK_FREQUENCIES = 6
_MATCH_STRENGTH = 1.5


def new_model(config: DecoderConfig, seed: int) -> Decoder:
    """Return a model with its first weights: the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.fill_(1.0)
            elif name.endswith("bias"):
                weight.zero_()
            else:
                weight.normal_(0.0, _spread(name, config), generator=generator)
        _look_back(model, config)
        _match(model, config, generator)
    return model


def _spread(name: str, config: DecoderConfig) -> float:
    """Standard deviation of a new matrix; what writes to the residual stream starts smaller."""
    if name.startswith("embedding"):
        return 0.5
    inputs = config.ffn_size if name.endswith("down.weight") else config.hidden_size
    return (0.5 if name.endswith(("o.weight", "down.weight")) else 1.0) / math.sqrt(inputs)


def _weight(model: Decoder, canonical: str) -> Tensor:
    return model.get_parameter(parameter_name(canonical))


def _look_back(model: Decoder, config: DecoderConfig) -> None:
    """Let the first group of heads in the first layer attend to the previous token.

    The biases of query and key are turned so that, after the rotary embedding, their product is largest at a
    distance of one.
    """
    count = _LOOK_BACK_FREQUENCIES
    angles = config.rope_theta ** (-torch.arange(count) * 2 / config.rotary_dim)
    ahead = torch.stack((angles.cos(), -angles.sin()), dim=1).flatten()  # interleaved pairs
    still = torch.stack((torch.ones(count), torch.zeros(count)), dim=1).flatten()
    group = config.num_heads // config.num_kv_heads
    query = _weight(model, "layers.0.q.bias").view(config.num_heads, config.head_dim)
    query[:group, : 2 * count] = ahead * _LOOK_BACK_STRENGTH
    _weight(model, "layers.0.k.bias")[: 2 * count] = still * _LOOK_BACK_STRENGTH


def _match(model: Decoder, config: DecoderConfig, generator: torch.Generator) -> None:
    """Let the second layer compare each token with the ones that came before the others.

    The first head that looks back writes what it sees to a place of its own in the residual stream. Keys of the
    second layer read that place, queries the token itself, both in the part of a head that is not rotated.
    """
    size, turned = config.head_dim, config.rotary_dim
    seen, place = (_orthonormal(size, config.hidden_size, generator) for _ in range(2))
    _weight(model, "layers.0.v.weight")[:size] = seen
    out = _weight(model, "layers.0.o.weight")
    out[:, :size] = place.T / 2
    out[:, size : 2 * size] = 0.0
    query, key = (_weight(model, f"layers.1.{name}.weight") for name in ("q", "k"))
    for weight in (query, key):
        weight[:turned] *= 0.3
    query[turned:size] = seen[: size - turned] * _MATCH_STRENGTH
    key[turned:size] = place[: size - turned] * _MATCH_STRENGTH * 1.5


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Random rows of length one at right angles to each other: (rows, columns)."""
    basis: Tensor = torch.linalg.qr(torch.randn(columns, rows, generator=generator))[0]
    return basis.T
