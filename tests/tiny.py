"""Tiny decoders and checkpoints made on the spot, for tests of every room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONFIG: dict[str, Any] = {
    "model_type": "chatglm",
    "num_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "kv_channels": 32,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "ffn_hidden_size": 192,
    "padded_vocab_size": 320,
    "seq_length": 256,
    "layernorm_epsilon": 1e-5,
    "add_qkv_bias": True,
    "add_bias_linear": False,
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "original_rope": True,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": 2,
}


def chatglm_tensors(config: dict[str, Any], *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights in ChatGLM's names; norms away from one, so that nothing can be folded away."""
    random = torch.Generator().manual_seed(seed)
    hidden, ffn, vocab = config["hidden_size"], config["ffn_hidden_size"], config["padded_vocab_size"]
    q_size = config["num_attention_heads"] * config["kv_channels"]
    qkv = q_size + 2 * config["multi_query_group_num"] * config["kv_channels"]

    def normal(*shape: int) -> torch.Tensor:
        scale = shape[-1] ** -0.5 if len(shape) > 1 else 0.1
        return torch.randn(shape, generator=random) * scale

    tensors = {
        "transformer.embedding.word_embeddings.weight": torch.randn((vocab, hidden), generator=random),
        "transformer.encoder.final_layernorm.weight": 1 + normal(hidden),
        "transformer.output_layer.weight": normal(vocab, hidden),
    }
    for layer in range(config["num_layers"]):
        stem = f"transformer.encoder.layers.{layer}"
        tensors |= {
            f"{stem}.input_layernorm.weight": 1 + normal(hidden),
            f"{stem}.post_attention_layernorm.weight": 1 + normal(hidden),
            f"{stem}.self_attention.query_key_value.weight": normal(qkv, hidden),
            f"{stem}.self_attention.query_key_value.bias": normal(qkv),
            f"{stem}.self_attention.dense.weight": normal(hidden, q_size),
            f"{stem}.mlp.dense_h_to_4h.weight": normal(2 * ffn, hidden),
            f"{stem}.mlp.dense_4h_to_h.weight": normal(hidden, ffn),
        }
    return tensors


def write_checkpoint(
    folder: Path, *, seed: int = 0, tensors: dict[str, torch.Tensor] | None = None, **changes: Any
) -> Path:
    """Write a checkpoint in ChatGLM3's own format; ``changes`` go into config.json."""
    config = CONFIG | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(chatglm_tensors(config, seed=seed) if tensors is None else tensors, folder / "model.safetensors")
    return folder
