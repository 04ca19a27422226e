"""The torch reference: the published form over the published weights, in float32, one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tpudeploy.checkpoint.weights import ModelWeights
from tpudeploy.graph.blocks import Block, RMSNorm, RotaryTable
from tpudeploy.graph.decoder import PARAMETER_NAMES, Decoder, causal_mask, parameter_name


def load_block(weights: ModelWeights, layer: int) -> Block:
    """One decoder layer with its published weights, in float32 and in the published form."""
    with torch.device("meta"):
        block = Block(weights.config)
    prefix = f"layers.{layer}."
    state = {PARAMETER_NAMES[name.removeprefix(prefix)]: weights.read_f32(name) for name in weights.layer_names(layer)}
    block.load_state_dict(state, assign=True)
    return block.eval().requires_grad_(requires_grad=False)


def load_decoder(weights: ModelWeights) -> Decoder:
    """The whole model in float32: for models that are small enough."""
    names = ["embedding.weight", "final_norm.weight", "lm_head.weight"]
    names += [name for layer in range(weights.config.num_layers) for name in weights.layer_names(layer)]
    decoder = Decoder(weights.config)
    decoder.load_state_dict({parameter_name(name): weights.read_f32(name) for name in names}, assign=True)
    return decoder.eval().requires_grad_(requires_grad=False)


def final_norm(weights: ModelWeights) -> RMSNorm:
    """The norm before the output head, in float32."""
    norm = RMSNorm(weights.config.hidden_size, weights.config.norm_eps)
    norm.load_state_dict({"weight": weights.read_f32("final_norm.weight")})
    return norm.eval().requires_grad_(requires_grad=False)


class StreamedReference:
    """Runs whole sequences through a model of any size, reading each layer when it is needed."""

    def __init__(self, weights: ModelWeights) -> None:
        self.weights = weights

    @torch.no_grad()
    def states(self, ids: list[int]) -> Iterator[Tensor]:
        """Hidden states (1, seq, hidden) after the embedding, then after each layer."""
        config = self.weights.config
        table = self.weights.read("embedding.weight")
        states = table[torch.tensor([ids])].float()
        yield states
        cos, sin = RotaryTable(config, len(ids))(torch.arange(len(ids)).unsqueeze(0))
        mask = causal_mask(len(ids), 0, config.form.mask)
        for layer in range(config.num_layers):
            states, _, _ = load_block(self.weights, layer)(states, cos, sin, mask)
            yield states

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Tensor:
        """(seq, vocab) logits of one sequence."""
        states = torch.empty(0)
        for states in self.states(ids):  # noqa: B007 - only the last is wanted
            pass
        normal = final_norm(self.weights)(states)[0]
        return torch.matmul(normal, self.weights.read_f32("lm_head.weight").T)


@torch.no_grad()
def greedy(decoder: Decoder, prompt: list[int], new_tokens: int) -> list[int]:
    """Greedy continuation of ``new_tokens`` tokens, whole-sequence recomputed: the plainest reference there is."""
    ids = list(prompt)
    for _ in range(new_tokens):
        ids.append(int(decoder(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]
