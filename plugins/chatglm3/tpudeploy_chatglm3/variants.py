"""The checkpoints of the family: what each one is, and which files of it are needed."""

from __future__ import annotations

import json
from pathlib import Path

from tpudeploy.contracts.adapter import ModelVariant, PublishedSpeed, RemoteFile
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.quant import QuantMode
from tpudeploy_chatglm3.config import LOGN_REASON, LOGN_ROPE_RATIO, ROPE_BASE, read_config

DEMO = Path(__file__).parent / "demo" / "checkpoint"
SHARDS = 7

CHATGLM3_6B = DecoderConfig(
    num_layers=28,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=2,
    head_dim=128,
    ffn_size=13696,
    vocab_size=65024,
    seq_length=8192,
    norm_eps=1e-5,
    rope_theta=ROPE_BASE,
    rotary_dim=64,
    eos_ids=(2,),
)
_SMALL_FILES = ("config.json", "tokenizer_config.json")
_TOKENIZER = RemoteFile(
    path="tokenizer.model",
    size_bytes=1018370,
    sha256="e7dc4c393423b76e4373e5157ddc34803a0189ba96b21ddbb40269d31468a6f2",
)

_SPEEDS = tuple(
    PublishedSpeed(
        platform="SE7-32",
        program="chatglm3.py",
        model=f"chatglm3-6b_{quant.value}.bmodel",
        quant=quant,
        first_token_s=first_token_s,
        tokens_per_s=tokens_per_s,
    )
    for quant, first_token_s, tokens_per_s in (
        (QuantMode.F16, 1.408, 4.067),
        (QuantMode.INT8, 1.116, 8.184),
        (QuantMode.INT4, 1.121, 12.822),
    )
)
"""README of sophon-demo's sample ChatGLM3, SDK V23.07.01: one chip, 512 tokens."""


def variants() -> tuple[ModelVariant, ...]:
    """The default first; the demo only where its checkpoint was installed with the plugin."""
    long = CHATGLM3_6B.model_copy(update={"seq_length": 32768, "rope_theta": ROPE_BASE * 50})
    unsupported = {"seq_length": 131072, "rope_theta": ROPE_BASE * LOGN_ROPE_RATIO}
    published = (
        ModelVariant(
            name="6b",
            config=CHATGLM3_6B,
            huggingface="THUDM/chatglm3-6b",
            modelscope="ZhipuAI/chatglm3-6b",
            files=_files("model.safetensors.index.json", "model-{:05}-of-{:05}.safetensors"),
            note="Chat, up to 8192 tokens. 12.5 GB to fetch; on Hugging Face also as zai-org/chatglm3-6b.",
            speeds=_SPEEDS,
        ),
        ModelVariant(
            name="6b-32k",
            config=long,
            huggingface="THUDM/chatglm3-6b-32k",
            modelscope="ZhipuAI/chatglm3-6b-32k",
            files=_files("pytorch_model.bin.index.json", "pytorch_model-{:05}-of-{:05}.bin"),
            note="Chat, up to 32768 tokens. 12.5 GB to fetch.",
        ),
        ModelVariant(name="6b-128k", config=CHATGLM3_6B.model_copy(update=unsupported), note=f"{LOGN_REASON}."),
    )
    return (*published, _demo()) if (DEMO / "config.json").is_file() else published


def _demo() -> ModelVariant:
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    return ModelVariant(
        name="demo",
        config=read_config(config),
        bundled=DEMO,
        note="A very small model that ships with tpudeploy: nothing to fetch, knows a few dialogues.",
    )


def _files(index: str, shard: str) -> tuple[RemoteFile, ...]:
    shards = [shard.format(number, SHARDS) for number in range(1, SHARDS + 1)]
    return (_TOKENIZER, *(RemoteFile(path=path) for path in (*_SMALL_FILES, index, *shards)))
