"""The training loop: random conversations, random quantization, a margin to every other token."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tpudeploy.graph.decoder import Decoder

from .network import logits_of, noisy
from .quantization import QUANTIZERS, Quantizer
from .samples import IGNORED, Sample, Sampler, padded
from .variations import Variations

Batch = tuple[Tensor, Tensor]
"""Ids and labels, both (batch, seq)."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    :param steps: number of updates that the schedule is made for.
    :param first: of those, the first one to do; the others were done before, or are left out.
    :param tokens: about how many tokens a batch holds, padding included.
    :param learning_rate: its highest value; it rises for ``warmup`` steps and then falls along a half cosine.
    :param margin: by how much the right token's logit must lead before the loss counts it as merely equal.
    :param noise: relative noise on every linear layer's output, in half of the batches.
    :param plain: share of batches whose weights are not quantized: all at first, this share from a third on.
    """

    steps: int
    first: int = 0
    tokens: int = 1536
    learning_rate: float = 2e-3
    warmup: int = 60
    weight_decay: float = 0.05
    margin: float = 4.0
    noise: float = 0.03
    plain: float = 0.15
    seed: int = 20231027


def train(model: Decoder, sampler: Sampler, variations: Variations, recipe: Recipe) -> None:
    """Train ``model`` in place, and print progress."""
    seed = recipe.seed + recipe.first
    chance = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    began, running = time.monotonic(), 0.0
    batches = _batches(sampler, variations, recipe)
    for step in range(recipe.first, recipe.steps):
        ids, labels = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, recipe)
        with noisy(model, recipe.noise * chance.randint(0, 1), generator):
            logits = logits_of(model, ids, _draw_quantizer(chance, recipe, step))
        loss = _loss(logits, labels, recipe.margin * min(1.0, 2 * step / recipe.steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running = loss.item() if step == recipe.first else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 99:
            print(f"step {step + 1:5d}  loss {running:.4f}  {time.monotonic() - began:5.0f} s", flush=True)


def _batches(sampler: Sampler, variations: Variations, recipe: Recipe) -> Iterator[Batch]:
    """Endless batches of conversations of like length."""
    waiting: dict[int, list[Sample]] = {}
    while True:
        sample = sampler.sample(variations.draw())
        size = math.ceil(math.log2(len(sample.ids)) * 2)  # lengths within a factor of 1.4 go together
        bucket = waiting.setdefault(size, [])
        bucket.append(sample)
        longest = max(len(item.ids) for item in bucket)
        if longest * len(bucket) >= recipe.tokens:
            yield padded(waiting.pop(size))


def _loss(logits: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Cross entropy in which the right token starts ``margin`` behind."""
    rows, targets = logits[labels != IGNORED], labels[labels != IGNORED]  # (trained, vocab), (trained)
    handicap = functional.one_hot(targets, rows.shape[-1]) * margin
    return functional.cross_entropy(rows - handicap, targets)


def _learning_rate(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    warm = min(1.0, (step - recipe.first + 1) / recipe.warmup)
    progress = (step - recipe.warmup) / (recipe.steps - recipe.warmup)
    return warm * recipe.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def _draw_quantizer(chance: random.Random, recipe: Recipe, step: int) -> Quantizer | None:
    if chance.random() < max(recipe.plain, 1 - 3 * step / recipe.steps):
        return None
    return QUANTIZERS[chance.choice(list(QUANTIZERS))]
