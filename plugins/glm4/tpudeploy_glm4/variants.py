"""The checkpoints of the family: what each one is, and where it is published.

Which files there are is left to the hubs: the repositories were renamed and their shards rewritten more than once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tpudeploy.contracts.adapter import ModelVariant, PublishedSpeed
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.quant import QuantMode
from tpudeploy_glm4.config import ROPE_BASE, read_config

DEMO = Path(__file__).parent / "demo" / "checkpoint"

GLM4_9B_CHAT = DecoderConfig(
    num_layers=40,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=2,
    head_dim=128,
    ffn_size=13696,
    vocab_size=151552,
    seq_length=131072,
    norm_eps=1.5625e-07,
    rope_theta=ROPE_BASE * 500,
    rotary_dim=64,
    dtype=DType.BF16,
    eos_ids=(151329, 151336, 151338),
)
_LONG = {"num_kv_heads": 4, "seq_length": 1048576, "rope_theta": ROPE_BASE * 10000}
_0414 = {"seq_length": 32768, "rope_theta": ROPE_BASE, "norm_eps": 1e-5, "post_norms": True}

_SPEEDS = tuple(
    PublishedSpeed(
        platform="SE7-32",
        program="ChatGLM4.py",
        model=f"ChatGLM4-9b_{quant.value}.bmodel",
        quant=quant,
        first_token_s=first_token_s,
        tokens_per_s=tokens_per_s,
    )
    for quant, first_token_s, tokens_per_s in ((QuantMode.INT8, 1.181, 4.471), (QuantMode.INT4, 1.114, 7.489))
)
"""README of sophon-demo's sample ChatGLM4, SDK V24.04.01: one chip, 512 tokens."""


def variants() -> tuple[ModelVariant, ...]:
    """The default first; the demo only where its checkpoint was installed with the plugin."""
    published = (
        _published("9b-chat", "glm-4-9b-chat", "Chat, up to 131072 tokens. 18.8 GB to fetch."),
        _published("9b-chat-1m", "glm-4-9b-chat-1m", "Chat, up to 1048576 tokens. 19 GB to fetch.", **_LONG),
        _published("9b-chat-hf", "glm-4-9b-chat-hf", "9b-chat with the names that transformers gives its weights."),
        _published("9b-chat-1m-hf", "glm-4-9b-chat-1m-hf", "9b-chat-1m with transformers' names.", **_LONG),
        _published("9b-0414", "GLM-4-9B-0414", "The chat model of April 2025, up to 32768 tokens.", **_0414),
    )
    return (*published, _demo()) if (DEMO / "config.json").is_file() else published


def _published(name: str, repository: str, note: str, **changes: Any) -> ModelVariant:
    return ModelVariant(
        name=name,
        config=GLM4_9B_CHAT.model_copy(update=changes),
        huggingface=f"THUDM/{repository}",
        modelscope=f"ZhipuAI/{repository}",
        note=f"{note} On Hugging Face also as zai-org/{repository}.",
        speeds=_SPEEDS if name in {"9b-chat", "9b-chat-hf"} else (),  # one decoder
    )


def _demo() -> ModelVariant:
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    return ModelVariant(
        name="demo",
        config=read_config(config),
        bundled=DEMO,
        note="A very small model that ships with tpudeploy: nothing to fetch, knows a few dialogues.",
    )
