"""Rounding of 16-bit activations, emulated: every result is rounded, sums are 32 bits and added in one of two orders.

The decode net and the verify net of a chip compute the same sums in another order. What this changes in the 24th bit
sometimes changes the rounding to 16 bits, and what follows then differs in the 8th or the 11th.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tpudeploy.contracts.dtypes import Array

Cache = list[tuple[Tensor, Tensor]]


class Emulation:
    """A decoder of ``layers`` layers with random weights: RMS norm, two key heads, SwiGLU of 2.75 times the width."""

    def __init__(self, layers: int, hidden: int, vocab: int, dtype: torch.dtype, *, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        self._dtype = dtype
        self._head = 32 if hidden < 1024 else 64
        self._heads, self._kv = hidden // self._head, 2
        ffn = hidden * 11 // 4

        def weight(inputs: int, outputs: int, scale: float = 1.0) -> Tensor:
            return self._round(torch.randn(inputs, outputs, generator=random) * scale * inputs**-0.5)

        def norm() -> Tensor:
            return self._round(1 + torch.randn(hidden, generator=random) * 0.1)

        qkv = hidden + 2 * self._kv * self._head
        self._embedding = self._round(torch.randn(vocab, hidden, generator=random))
        self._layers = [
            (norm(), weight(hidden, qkv), weight(hidden, hidden), norm(), weight(hidden, 2 * ffn), weight(ffn, hidden))
            for _ in range(layers)
        ]
        self._final, self._output = norm(), weight(hidden, vocab)

    def four_ways(self, ids: Tensor) -> tuple[Array, Array, Array, Array]:
        """Logits (positions, vocab) of decode passes; verify, same cache; decode, verified cache; verify, that."""
        plain, cache = self._run(ids, 1, None)
        both, verified = self._run(ids, 4, None)
        same, _ = self._run(ids, 4, cache)
        cached, _ = self._run(ids, 1, verified)
        return plain.numpy(), same.numpy(), cached.numpy(), both.numpy()

    def _run(self, ids: Tensor, parts: int, given: Cache | None) -> tuple[Tensor, Cache]:
        """All positions at once; each sees its own row, and those before it from ``given``, or as this run makes them.

        :param parts: in how many parts each sum is added.
        """
        states, cache = self._embedding[ids], []
        for index, (norm, qkv, out, ffn_norm, up, down) in enumerate(self._layers):
            own = self._product(self._norm(states, norm), qkv, parts)
            q, k, v = own.split((self._heads * self._head, *[self._kv * self._head] * 2), dim=1)
            q, k = (self._rotate(part.unflatten(1, (-1, self._head))) for part in (q, k))
            v = v.unflatten(1, (-1, self._head))
            cache.append((k, v))
            attended = self._attend(q, k, v, *(given[index] if given is not None else (k, v)), parts)
            states = self._round(states + self._product(attended, out, parts))
            gate, value = self._product(self._norm(states, ffn_norm), up, parts).chunk(2, dim=1)
            gated = self._round(self._round(torch.nn.functional.silu(gate)) * value)
            states = self._round(states + self._product(gated, down, parts))
        return self._product(self._norm(states, self._final), self._output, parts), cache

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, old_k: Tensor, old_v: Tensor, parts: int) -> Tensor:
        repeats = self._heads // self._kv
        q, k, v, old_k, old_v = (states.transpose(0, 1) for states in (q, k, v, old_k, old_v))
        k, v, old_k, old_v = (states.repeat_interleave(repeats, 0) for states in (k, v, old_k, old_v))
        scores = self._product(q, old_k.transpose(1, 2), parts)
        itself = self._round((q * k).sum(-1))
        count = scores.shape[1]
        scores = torch.where(torch.eye(count, dtype=torch.bool), itself[:, :, None], scores)
        scores = self._round(scores * self._head**-0.5).masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf)
        chances = self._round(scores.softmax(-1))
        own = chances.diagonal(dim1=1, dim2=2)[:, :, None]
        # The row's own value takes the place of the cache's.
        context = self._sum(chances.tril(-1), old_v, parts) + own * v
        return self._round(context.transpose(0, 1).flatten(1))

    def _rotate(self, states: Tensor) -> Tensor:
        """(positions, heads, head) by rotary embedding over half of each head."""
        half = self._head // 4
        angles = torch.arange(states.shape[0])[:, None, None] / 10000 ** (torch.arange(half) / half)
        first, second, rest = states.split((half, half, self._head - 2 * half), dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return self._round(torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1))

    def _norm(self, states: Tensor, weight: Tensor) -> Tensor:
        return self._round(states * (states.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight)

    def _product(self, states: Tensor, weight: Tensor, parts: int) -> Tensor:
        return self._round(self._sum(states, weight, parts))

    @staticmethod
    def _sum(states: Tensor, weight: Tensor, parts: int) -> Tensor:
        """A product whose inner sums are added in so many parts, the last one first."""
        if parts == 1:
            return states @ weight
        pieces = zip(states.chunk(parts, dim=-1), weight.chunk(parts, dim=-2), strict=True)
        total = torch.zeros(())
        for left, right in reversed(list(pieces)):
            total = total + left @ right
        return total

    def _round(self, states: Tensor) -> Tensor:
        return states.to(self._dtype).float()
