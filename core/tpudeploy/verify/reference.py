"""The torch reference over many sequences at once: each layer is read once for all of them, and then freed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tpudeploy.checkpoint.weights import ModelWeights
from tpudeploy.contracts.dtypes import Array
from tpudeploy.graph.blocks import RotaryTable
from tpudeploy.graph.decoder import causal_mask
from tpudeploy.graph.reference import final_norm, load_block

Sequences = Mapping[tuple[int, ...], int]
"""Token ids -> of how many of the last positions logits are wanted."""


@torch.no_grad()
def reference_logits(
    weights: ModelWeights, sequences: Sequences, report: Callable[[str], None]
) -> dict[tuple[int, ...], Array]:
    """Logits of the published model in float32.

    :param report: told the name of each layer before it runs.
    :returns: for each sequence (rows, vocab) float32.
    """
    config = weights.config
    if not sequences:
        return {}
    table = weights.read("embedding.weight")
    states = {ids: table[torch.tensor([ids])].float() for ids in sequences}  # (1, seq, hidden)
    del table
    rotary = RotaryTable(config, max(map(len, sequences)))
    for layer in range(config.num_layers):
        report(f"layer_{layer:03d}")
        block = load_block(weights, layer)
        for ids, before in states.items():
            cos, sin = rotary(torch.arange(len(ids)).unsqueeze(0))
            states[ids], _, _ = block(before, cos, sin, causal_mask(len(ids), 0, config.form.mask))
        del block
    report("lm_head")
    return _logits(weights, {ids: states[ids][0, -rows:] for ids, rows in sequences.items()})


def _logits(weights: ModelWeights, states: Mapping[tuple[int, ...], Tensor]) -> dict[tuple[int, ...], Array]:
    norm, matrix = final_norm(weights), weights.read_f32("lm_head.weight")
    return {ids: torch.matmul(norm(rows), matrix.T).numpy() for ids, rows in states.items()}
