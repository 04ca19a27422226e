"""Half-split rotary embedding: permute the projections once, so that no net has to interleave.

GLM rotates pairs of neighbouring elements (0, 1), (2, 3), ... On the chip, picking every second element is a strided
transfer that costs more than the attention itself. Moving the rows of W_q and W_k (and of their biases) so that
each pair lies in two halves leaves every attention score as it is: queries and keys are permuted alike.
"""

from __future__ import annotations

import torch
from torch import Tensor


def half_split_order(head_dim: int, rotary_dim: int) -> Tensor:
    """(head_dim,) indices: where each element of a half-split head lies in an interleaved head."""
    even, odd = torch.arange(0, rotary_dim, 2), torch.arange(1, rotary_dim, 2)
    return torch.cat((even, odd, torch.arange(rotary_dim, head_dim)))


def to_half_split(rows: Tensor, head_dim: int, rotary_dim: int) -> Tensor:
    """Permute the rows of a projection's weight (heads * head_dim, hidden) or bias (heads * head_dim,)."""
    return _permute(rows, head_dim, half_split_order(head_dim, rotary_dim))


def to_interleaved(rows: Tensor, head_dim: int, rotary_dim: int) -> Tensor:
    """The inverse of :func:`to_half_split`."""
    return _permute(rows, head_dim, torch.argsort(half_split_order(head_dim, rotary_dim)))


def _permute(rows: Tensor, head_dim: int, order: Tensor) -> Tensor:
    heads = rows.reshape(-1, head_dim, *rows.shape[1:])  # (heads, head_dim, ...)
    permuted: Tensor = heads[:, order].flatten(0, 1)
    return permuted
