"""How often a quantized output layer chooses the token that the 16-bit one would choose.

    python scripts/bench_head.py
    python scripts/bench_head.py --vocab 151552 --states 512

Only the output layer is quantized here, bit for bit as the compiler does it; hidden states are the exact model's.
Demo models: every token of the answers to their dialogues. Full width: random weights, and hidden states that lean
towards one token by so many logits; without any lean the best of all tokens is a matter of chance, which no text is:
the worst case.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tpudeploy.compile.cpu_nets.quantize import quantize
from tpudeploy.compile.source import ModelSource, open_source, parse_model
from tpudeploy.contracts.chat import Message
from tpudeploy.contracts.quant import INT4_GROUP_SIZE
from tpudeploy.graph.reference import StreamedReference, final_norm
from tpudeploy.plugins import registry
from tpudeploy.settings import load_settings

ROWS = 4096
"""Rows of the output layer worked on at once."""


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """(out, in) as the chip computes with it: 16 bits, or integers with a scale of 16 bits for 64 inputs."""
    if bits == 16:
        return weight.half().float()
    values, scales, zeros = quantize(weight.numpy(), bits, INT4_GROUP_SIZE)
    scales = scales.astype(np.float16).astype(np.float32)
    groups = values.reshape(*scales.shape, -1).astype(np.float32) - zeros[:, :, None]
    return torch.from_numpy((groups * scales[:, :, None]).reshape(values.shape))


def logits(states: torch.Tensor, head: torch.Tensor, bits: int) -> torch.Tensor:
    """(n, hidden), (vocab, hidden) -> (n, vocab)."""
    return torch.cat([states @ rounded(part, bits).T for part in head.split(ROWS)], dim=1)


def report(title: str, states: torch.Tensor, head: torch.Tensor) -> None:
    """Print agreement with the 16-bit layer."""
    states = states.half().float()
    exact = logits(states, head, 16)
    sure = exact.softmax(-1).max(-1).values
    print(f"{title}: {len(states)} tokens, the best one's probability {sure.mean():.2f} on average")
    for bits in (8, 4):
        chosen = logits(states, head, bits)
        same = chosen.argmax(-1) == exact.argmax(-1)
        # Where it chose another: how much less likely that one is to the exact layer.
        lost = exact.max(-1).values - exact.gather(1, chosen.argmax(-1, keepdim=True))[:, 0]
        divergence = (exact.softmax(-1) * (exact.log_softmax(-1) - chosen.log_softmax(-1))).sum(-1).mean()
        print(
            f"  int{bits}: same token {100 * same.float().mean():6.2f} %; largest logit given up {lost.max():.3f}; "
            f"KL divergence {divergence:.2e}"
        )


def demo_states(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the output layer of a demo model reads at every token of its answers, and its weights."""
    adapter, variant = parse_model(name, registry())
    source = open_source(adapter, variant, load_settings())
    weights = source.weights()
    reference, norm = StreamedReference(weights), final_norm(weights)
    rows = []
    for ids, start in answers(source, Path(str(variant.bundled)).parent):
        states = list(reference.states(ids))[-1][0, start - 1 : -1]
        rows.append(norm(states))
    return torch.cat(rows), weights.read_f32("lm_head.weight")


def answers(source: ModelSource, folder: Path) -> Iterator[tuple[list[int], int]]:
    """Each dialogue up to its last answer, and where that begins."""
    tokenizer = source.adapter.load_tokenizer(source.checkpoint.folder, source.config)
    template = source.adapter.chat_template(tokenizer)
    for dialogue in json.loads((folder / "dialogues.json").read_text(encoding="utf-8")):
        messages = [Message.model_validate(message) for message in dialogue["messages"]]
        last = max(place for place, message in enumerate(messages) if message.role == "assistant")
        prompt = list(template.encode(messages[:last]))
        yield prompt + tokenizer.encode(messages[last].content), len(prompt)


def synthetic(vocab: int, count: int, lean: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Random states of full width, which lean towards a random token each by so many logits, and an output layer."""
    generator = torch.Generator().manual_seed(1)
    head = torch.randn(vocab, 4096, generator=generator) * 0.02
    states = torch.randn(count, 4096, generator=generator)
    towards = head[torch.randint(vocab, (count,), generator=generator)]
    return states + towards * (lean / towards.square().sum(-1, keepdim=True)), head


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=65024)
    parser.add_argument("--states", type=int, default=256)
    options = parser.parse_args()
    with torch.no_grad():
        for name in ("chatglm3:demo", "glm4:demo"):
            report(name, *demo_states(name))
        for lean in (0.0, 10.0, 12.0, 15.0):
            title = f"4096 x {options.vocab}, leaning by {lean:.0f}"
            report(title, *synthetic(options.vocab, options.states, lean))


if __name__ == "__main__":
    main()
