"""Fake quantization: weights rounded as the compiler's INT8 and INT4 modes round them, still trainable.

Several flavours of each width are covered, because compilers differ in whether a group has a zero point and in how
they scale it: a model that answers under all of them does not depend on one compiler's choice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

GROUP = 64
Quantizer = Callable[[Tensor], Tensor]


def _symmetric(weight: Tensor, *, bits: int, group: int | None, full_range: bool) -> Tensor:
    """Round to signed integers times one scale per output channel, or per group of input columns."""
    rows = weight.reshape(-1, group) if group else weight  # (out * in / group, group)
    top = 2 ** (bits - 1) - 1
    limit = top + 1 if full_range else top
    scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-8) / limit
    steps = (rows / scale).round().clamp(-limit, top)
    return torch.mul(steps, scale).reshape(weight.shape)


def _asymmetric(weight: Tensor, *, bits: int, with_zero: bool) -> Tensor:
    """Round to unsigned integers with a scale and an integer zero point per group of input columns."""
    rows = weight.reshape(-1, GROUP)  # (out * in / GROUP, GROUP)
    low, high = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
    if with_zero:
        low, high = low.clamp_max(0), high.clamp_min(0)
    top = 2**bits - 1
    scale = (high - low).clamp_min(1e-8) / top
    zero = (-low / scale).round().clamp(0, top)
    steps = ((rows / scale).round() + zero).clamp(0, top)
    return torch.mul(steps - zero, scale).reshape(weight.shape)


QUANTIZERS: dict[str, Quantizer] = {
    "int8 channel": lambda w: _symmetric(w, bits=8, group=None, full_range=False),
    "int8 group": lambda w: _asymmetric(w, bits=8, with_zero=False),
    "int4 symmetric /7": lambda w: _symmetric(w, bits=4, group=GROUP, full_range=False),
    "int4 symmetric /8": lambda w: _symmetric(w, bits=4, group=GROUP, full_range=True),
    "int4 asymmetric": lambda w: _asymmetric(w, bits=4, with_zero=False),
    "int4 asymmetric with 0": lambda w: _asymmetric(w, bits=4, with_zero=True),
}


def quantized(weights: dict[str, Tensor], quantizer: Quantizer) -> dict[str, Tensor]:
    """Round every matrix; gradients pass straight through to the unrounded weights."""
    rounded = {}
    for name, weight in weights.items():
        with torch.no_grad():
            change = quantizer(weight) - weight
        rounded[name] = weight + change
    return rounded
