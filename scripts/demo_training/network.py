"""The demo model's size, its first weights, and runs of it under fake quantization and noise."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.graph.decoder import Decoder, parameter_name

from .quantization import Quantizer, quantized

CONFIG = DecoderConfig(
    num_layers=2,
    hidden_size=256,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    ffn_size=512,
    vocab_size=1536,
    seq_length=2048,
    norm_eps=1e-5,
    rope_theta=10000.0,
    rotary_dim=32,
)


def new_model(seed: int) -> Decoder:
    """Return a model with random weights: the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(CONFIG)
    for name, weight in model.named_parameters():
        with torch.no_grad():
            if name.endswith("norm.weight"):
                weight.fill_(1.0)
            elif name.endswith("bias"):
                weight.zero_()
            else:
                weight.normal_(0.0, _first_spread(name), generator=generator)
    _look_back(model)
    return model


@torch.no_grad()
def _look_back(model: Decoder) -> None:
    """Let the first group of heads of the first layer attend to the previous token from the start.

    Copying text takes such heads, and finding them takes longer than all the rest of the training. The biases of
    query and key are turned so that, after the rotary embedding, their product is largest at a distance of one.
    """
    strength, fastest = 6.0, 6
    angles = CONFIG.rope_theta ** (-torch.arange(fastest) * 2 / CONFIG.rotary_dim)
    ahead = torch.stack((angles.cos(), -angles.sin()), dim=1).flatten() * strength  # interleaved pairs
    still = torch.stack((torch.ones(fastest), torch.zeros(fastest)), dim=1).flatten() * strength
    heads = CONFIG.num_heads // CONFIG.num_kv_heads
    query = model.get_parameter(parameter_name("layers.0.q.bias")).view(CONFIG.num_heads, CONFIG.head_dim)
    query[:heads, : 2 * fastest] = ahead
    model.get_parameter(parameter_name("layers.0.k.bias"))[: 2 * fastest] = still


def _first_spread(name: str) -> float:
    """Standard deviation of a new matrix; what writes to the residual stream starts smaller."""
    inputs = CONFIG.ffn_size if name.endswith("down.weight") else CONFIG.hidden_size
    if name.endswith(("o.weight", "down.weight")):
        return 0.5 / math.sqrt(inputs)
    return 0.5 if name.startswith("embedding") else 1.0 / math.sqrt(inputs)


def linear_weights(model: nn.Module) -> dict[str, Tensor]:
    """The matrices that INT8 and INT4 quantize: those of every linear layer, by canonical name."""
    return {
        name: weight
        for name, weight in model.named_parameters()
        if weight.ndim == 2 and not name.startswith("embedding")
    }


def logits_of(model: Decoder, ids: Tensor, quantizer: Quantizer | None) -> Tensor:
    """Run a batch with its weights fake-quantized: ids (batch, seq) to logits (batch, seq, vocab)."""
    if quantizer is None:
        logits: Tensor = model(ids)
    else:
        logits = functional_call(model, quantized(linear_weights(model), quantizer), (ids,))
    return logits


@contextlib.contextmanager
def noisy(model: nn.Module, spread: float, generator: torch.Generator) -> Iterator[None]:
    """Add Gaussian noise to the output of each linear layer.

    :param spread: the noise's standard deviation, relative to the output's own magnitude (root of its mean square).
    """

    def disturb(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        magnitude = output.detach().float().square().mean().sqrt().to(output.dtype)
        noise = torch.randn(output.shape, generator=generator).to(output.dtype)
        return output + noise * magnitude * spread

    targets = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_hook(disturb) for module in targets] if spread else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
