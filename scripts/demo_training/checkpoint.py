"""The demo model in ChatGLM3's own checkpoint format: its config.json, weight names and tokenizer files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.graph.decoder import Decoder, parameter_name

_WHOLE = {
    "embedding.weight": "transformer.embedding.word_embeddings.weight",
    "final_norm.weight": "transformer.encoder.final_layernorm.weight",
    "lm_head.weight": "transformer.output_layer.weight",
}
_LAYER = {
    "input_layernorm.weight": ("attention_norm.weight",),
    "self_attention.query_key_value.weight": ("q.weight", "k.weight", "v.weight"),
    "self_attention.query_key_value.bias": ("q.bias", "k.bias", "v.bias"),
    "self_attention.dense.weight": ("o.weight",),
    "post_attention_layernorm.weight": ("ffn_norm.weight",),
    "mlp.dense_h_to_4h.weight": ("gate.weight", "up.weight"),
    "mlp.dense_4h_to_h.weight": ("down.weight",),
}
"""ChatGLM3's name of a layer's tensor, and the canonical weights whose rows it holds, in order."""

_ARCHITECTURE: dict[str, Any] = {
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "torch_dtype": "float16",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "multi_query_attention": True,
    "original_rope": True,
    "post_layer_norm": True,
    "rmsnorm": True,
    "use_cache": True,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""What every ChatGLM3 config.json says."""


def save_checkpoint(folder: Path, model: Decoder, config: DecoderConfig, tokenizer: bytes) -> None:
    """Write a whole checkpoint; each file appears complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "model.safetensors.partial"
    save_file(_published(model, config), partial, metadata={"format": "pt"})
    _finish(partial)
    files = {
        "tokenizer.model": tokenizer,
        "config.json": _json(_config_json(config)),
        "tokenizer_config.json": _json(_tokenizer_config()),
        "generation_config.json": _json({"_from_model_config": True, "eos_token_id": 2, "pad_token_id": 0}),
    }
    for name, content in files.items():
        partial = folder / f"{name}.partial"
        partial.write_bytes(content)
        _finish(partial)


def load_weights(path: Path, config: DecoderConfig) -> dict[str, Tensor]:
    """Read a checkpoint's weights back, under the decoder's parameter names and in float32."""
    published = {name: tensor.float() for name, tensor in load_file(path).items()}
    weights = {canonical: published[name] for canonical, name in _WHOLE.items()}
    sizes = {"q": config.q_size, "k": config.kv_size, "v": config.kv_size}
    for layer in range(config.num_layers):
        for name, parts in _LAYER.items():
            fused = published[f"transformer.encoder.layers.{layer}.{name}"]
            rows = [sizes.get(part.split(".")[0], fused.shape[0] // len(parts)) for part in parts]
            for part, piece in zip(parts, fused.split(rows), strict=True):
                weights[parameter_name(f"layers.{layer}.{part}")] = piece
    return weights


def _published(model: Decoder, config: DecoderConfig) -> dict[str, Tensor]:
    """The weights in float16 under ChatGLM3's names, fused as it fuses them."""
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    tensors = {name: weights[canonical] for canonical, name in _WHOLE.items()}
    for layer in range(config.num_layers):
        for name, parts in _LAYER.items():
            fused = torch.cat([weights[parameter_name(f"layers.{layer}.{part}")] for part in parts])
            tensors[f"transformer.encoder.layers.{layer}.{name}"] = fused
    steps = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
    tensors["transformer.rotary_pos_emb.inv_freq"] = 1.0 / config.rope_theta**steps
    return {name: tensor.to(torch.float16).contiguous() for name, tensor in sorted(tensors.items())}


def _config_json(config: DecoderConfig) -> dict[str, Any]:
    """A decoder as ChatGLM3's config.json describes it."""
    return {
        **_ARCHITECTURE,
        "ffn_hidden_size": config.ffn_size,
        "hidden_size": config.hidden_size,
        "kv_channels": config.head_dim,
        "layernorm_epsilon": config.norm_eps,
        "multi_query_group_num": config.num_kv_heads,
        "num_attention_heads": config.num_heads,
        "num_layers": config.num_layers,
        "padded_vocab_size": config.vocab_size,
        "seq_length": config.seq_length,
    }


def _tokenizer_config() -> dict[str, Any]:
    return {"remove_space": False, "do_lower_case": False, "tokenizer_class": "ChatGLMTokenizer"}


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _finish(partial: Path) -> None:
    """Flush a file to disk and give it its name."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.chmod(0o644)
    partial.replace(partial.with_suffix(""))
