"""Where ChatGLM3's checkpoints keep each weight.

The authors fuse q, k, v into ``query_key_value`` (rows: heads, then groups twice, each times head_dim) and gate, up
into ``dense_h_to_4h`` (gate first). ``rotary_pos_emb.inv_freq`` is not listed: it follows from the config.
"""

from __future__ import annotations

from collections.abc import Iterator

from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.weights import WeightRef, WeightTable


def weight_table(config: DecoderConfig) -> WeightTable:
    """Canonical name -> place in the checkpoint, for every weight of the model."""
    table = {
        "embedding.weight": WeightRef(tensor="transformer.embedding.word_embeddings.weight"),
        "final_norm.weight": WeightRef(tensor="transformer.encoder.final_layernorm.weight"),
        "lm_head.weight": WeightRef(tensor="transformer.output_layer.weight"),
    }
    for layer in range(config.num_layers):
        for name, ref in _layer_refs(config, f"transformer.encoder.layers.{layer}"):
            table[f"layers.{layer}.{name}"] = ref
    return table


def _layer_refs(config: DecoderConfig, prefix: str) -> Iterator[tuple[str, WeightRef]]:
    yield "attention_norm.weight", WeightRef(tensor=f"{prefix}.input_layernorm.weight")
    qkv = (("q", config.q_size), ("k", config.kv_size), ("v", config.kv_size))
    for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
        yield from _split(f"{prefix}.self_attention.query_key_value.{kind}", qkv, kind)
    yield "o.weight", WeightRef(tensor=f"{prefix}.self_attention.dense.weight")
    yield "ffn_norm.weight", WeightRef(tensor=f"{prefix}.post_attention_layernorm.weight")
    gate_up = (("gate", config.ffn_size), ("up", config.ffn_size))
    yield from _split(f"{prefix}.mlp.dense_h_to_4h.weight", gate_up, "weight")
    yield "down.weight", WeightRef(tensor=f"{prefix}.mlp.dense_4h_to_h.weight")


def _split(tensor: str, parts: tuple[tuple[str, int], ...], kind: str) -> Iterator[tuple[str, WeightRef]]:
    start = 0
    for name, rows in parts:
        yield f"{name}.{kind}", WeightRef(tensor=tensor, rows=(start, start + rows))
        start += rows
