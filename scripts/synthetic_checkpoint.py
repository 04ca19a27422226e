"""Write a ChatGLM3 or GLM-4 checkpoint with random weights, of any number of layers, at full width.

Benchmarks need the real shapes, not the real numbers. Shards of one layer each, in the type that each publishes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

COMMON = {
    "model_type": "chatglm",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "kv_channels": 128,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "ffn_hidden_size": 13696,
    "add_qkv_bias": True,
}
FAMILIES: dict[str, dict[str, object]] = {
    "chatglm3": {
        "num_layers": 28,
        "padded_vocab_size": 65024,
        "seq_length": 8192,
        "layernorm_epsilon": 1e-5,
        "torch_dtype": "float16",
        "eos_token_id": 2,
    },
    "glm4": {
        "num_layers": 40,
        "padded_vocab_size": 151552,
        "seq_length": 131072,
        "rope_ratio": 500,
        "layernorm_epsilon": 1.5625e-07,
        "torch_dtype": "bfloat16",
        "eos_token_id": [151329, 151336, 151338],
    },
}
"""What differs between the two at full width."""


def write_checkpoint(folder: Path, family: str, *, layers: int | None = None, vocab: int | None = None) -> None:
    """Write the checkpoint; ``layers`` and ``vocab`` replace the family's own."""
    config = COMMON | FAMILIES[family]
    config |= {"num_layers": layers or config["num_layers"], "padded_vocab_size": vocab or config["padded_vocab_size"]}
    layers = int(str(config["num_layers"]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    weight_map: dict[str, str] = {}
    for shard in range(layers + 1):
        tensors = _ends(config) if shard == layers else _layer(config, shard)
        name = f"model-{shard + 1:05d}-of-{layers + 1:05d}.safetensors"
        dtype = getattr(torch, str(config["torch_dtype"]))
        save_file({key: tensor.to(dtype) for key, tensor in tensors.items()}, folder / name)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _normal(seed: int, *shape: int, scale: float = 0.02) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * scale


def _layer(config: dict[str, object], layer: int) -> dict[str, torch.Tensor]:
    hidden, ffn, qkv = 4096, 13696, 4096 + 2 * 2 * 128
    stem, seed = f"transformer.encoder.layers.{layer}", 100 * layer
    return {
        f"{stem}.input_layernorm.weight": 1 + _normal(seed + 1, hidden, scale=0.1),
        f"{stem}.post_attention_layernorm.weight": 1 + _normal(seed + 2, hidden, scale=0.1),
        f"{stem}.self_attention.query_key_value.weight": _normal(seed + 3, qkv, hidden),
        f"{stem}.self_attention.query_key_value.bias": _normal(seed + 4, qkv),
        f"{stem}.self_attention.dense.weight": _normal(seed + 5, hidden, hidden),
        f"{stem}.mlp.dense_h_to_4h.weight": _normal(seed + 6, 2 * ffn, hidden),
        f"{stem}.mlp.dense_4h_to_h.weight": _normal(seed + 7, hidden, ffn),
    }


def _ends(config: dict[str, object]) -> dict[str, torch.Tensor]:
    hidden, vocab = 4096, int(str(config["padded_vocab_size"]))
    return {
        "transformer.embedding.word_embeddings.weight": _normal(7, vocab, hidden),
        "transformer.encoder.final_layernorm.weight": 1 + _normal(8, hidden, scale=0.1),
        "transformer.output_layer.weight": _normal(9, vocab, hidden),
    }


def write_narrow_checkpoint(folder: Path, layers: int, hidden: int, vocab: int, *, seed: int = 0) -> None:
    """Write a ChatGLM3 checkpoint of one file and any width, whose activations stay in a usual range."""
    head, ffn, random = 32, hidden * 3 // 2, torch.Generator().manual_seed(seed)
    sizes = {"hidden_size": hidden, "num_attention_heads": hidden // head, "kv_channels": head, "ffn_hidden_size": ffn}
    config = COMMON | FAMILIES["chatglm3"] | sizes | {"num_layers": layers, "padded_vocab_size": vocab}
    qkv = hidden + 2 * 2 * head

    def matrix(outputs: int, inputs: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn((outputs, inputs), generator=random) * scale * inputs**-0.5).half()

    def norm() -> torch.Tensor:
        return (1 + torch.randn(hidden, generator=random) * 0.1).half()

    tensors = {
        "transformer.embedding.word_embeddings.weight": matrix(vocab, hidden, hidden**0.5),
        "transformer.encoder.final_layernorm.weight": norm(),
        "transformer.output_layer.weight": matrix(vocab, hidden),
    }
    for layer in range(layers):
        stem = f"transformer.encoder.layers.{layer}"
        tensors |= {
            f"{stem}.input_layernorm.weight": norm(),
            f"{stem}.post_attention_layernorm.weight": norm(),
            f"{stem}.self_attention.query_key_value.weight": matrix(qkv, hidden),
            f"{stem}.self_attention.query_key_value.bias": matrix(qkv, 1, 0.1)[:, 0].contiguous(),
            f"{stem}.self_attention.dense.weight": matrix(hidden, hidden),
            f"{stem}.mlp.dense_h_to_4h.weight": matrix(2 * ffn, hidden),
            f"{stem}.mlp.dense_4h_to_h.weight": matrix(hidden, ffn),
        }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_file(tensors, folder / "model.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=list(FAMILIES), default="chatglm3")
    parser.add_argument("--layers", type=int, help="how many; without it, as many as the model has")
    parser.add_argument("--vocab", type=int, help="rows of the embedding; without it, as many as the model has")
    options = parser.parse_args()
    write_checkpoint(options.folder, options.family, layers=options.layers, vocab=options.vocab)
    print(f"wrote {options.folder}")
