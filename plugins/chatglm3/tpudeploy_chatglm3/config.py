"""ChatGLM3's config.json, in the authors' own format (``configuration_chatglm.py``), to a decoder.

Fields that decide a shape must be there. Of the flags, those that this network knows only one way are checked;
a flag that is missing has that value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.dtypes import DType
from tpudeploy.errors import CheckpointError

ROPE_BASE = 10000.0
LONGEST_SUPPORTED = 32768
LOGN_ROPE_RATIO = 500
LOGN_REASON = (
    "ChatGLM3-6B-128K is not supported: its own code multiplies queries by max(1, ln(position + 65) / ln 2048), "
    "which config.json does not tell and no exported net does"
)

_FLAGS: Mapping[str, bool] = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "original_rope": True,
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "tie_word_embeddings": False,
}
_UNSET = {
    "pre_seq_len": "P-tuning v2 prefixes are not supported",
    "quantization_bit": "the export quantizes by itself and needs the unquantized weights",
}
_DTYPES = {"float16": DType.F16, "bfloat16": DType.BF16, "float32": DType.F32}


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Read a config.json.

    :raises CheckpointError: not ChatGLM3, incomplete, or with a feature that is not supported; it names the field.
    """
    _check_family(config)
    _check_flags(config)
    heads, head_dim = _count(config, "num_attention_heads"), _count(config, "kv_channels")
    # The authors rotate half of each head, in pairs.
    _require(head_dim % 4 == 0, config, "kv_channels", "a multiple of 4")
    decoder = DecoderConfig(
        num_layers=_count(config, "num_layers"),
        hidden_size=_count(config, "hidden_size"),
        num_heads=heads,
        num_kv_heads=_kv_heads(config, heads),
        head_dim=head_dim,
        ffn_size=_count(config, "ffn_hidden_size"),
        vocab_size=_count(config, "padded_vocab_size"),
        seq_length=_count(config, "seq_length"),
        norm_eps=_number(config, "layernorm_epsilon"),
        rope_theta=ROPE_BASE * _number(config, "rope_ratio", 1.0),
        rotary_dim=head_dim // 2,
        qkv_bias=_flag(config, "add_qkv_bias", default=False),
        dtype=_dtype(config),
        eos_ids=_eos_ids(config),
    )
    _check_logn(config)
    return decoder


def _check_family(config: Mapping[str, Any]) -> None:
    _require(config.get("model_type") == "chatglm", config, "model_type", "'chatglm', the authors' own format")
    eos = config.get("eos_token_id")
    glm4 = {
        "padded_vocab_size": config.get("padded_vocab_size") == 151552,
        "eos_token_id": isinstance(eos, list) and 151329 in eos,
        "num_layers": config.get("num_layers") == 40,
    }
    others = {
        "GLM-4": glm4,
        "ChatGLM2-6B": {"_name_or_path": "chatglm2" in str(config.get("_name_or_path", "")).lower()},
        "ChatGLM-6B": {"position_encoding_2d": "position_encoding_2d" in config},
    }
    for name, marks in others.items():
        told = [f"{field} is {config[field]!r}" for field, found in marks.items() if found]
        if told:
            hint = "Choose a model whose name begins with glm4." if marks is glm4 else "Its prompts are different."
            raise CheckpointError(f"config.json describes {name}, not ChatGLM3: {', '.join(told)}.", hint=hint)


def _check_flags(config: Mapping[str, Any]) -> None:
    for field, needed in _FLAGS.items():
        _require(_flag(config, field, default=needed) is needed, config, field, str(needed).lower())
    for field, reason in _UNSET.items():
        _require(not config.get(field), config, field, f"unset or 0, because {reason}")


def _check_logn(config: Mapping[str, Any]) -> None:
    ratio, length = _number(config, "rope_ratio", 1.0), _count(config, "seq_length")
    if ratio == LOGN_ROPE_RATIO or length > LONGEST_SUPPORTED:
        raise CheckpointError(
            f"{LOGN_REASON} (seq_length {length}, rope_ratio {ratio:g}).",
            hint="Choose chatglm3:6b-32k for long conversations.",
        )


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    if not _flag(config, "multi_query_attention", default=False):
        return heads
    groups = _count(config, "multi_query_group_num")
    _require(heads % groups == 0, config, "multi_query_group_num", f"a divisor of num_attention_heads ({heads})")
    return groups


def _dtype(config: Mapping[str, Any]) -> DType:
    field = "dtype" if config.get("torch_dtype") is None and "dtype" in config else "torch_dtype"
    name = config.get(field)
    _require(name is None or name in _DTYPES, config, field, f"one of {', '.join(_DTYPES)}")
    return DType.F16 if name is None else _DTYPES[name]


def _eos_ids(config: Mapping[str, Any]) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    _require(all(type(i) is int and i >= 0 for i in ids), config, "eos_token_id", "a token id, or a list of them")
    return tuple(ids)


def _flag(config: Mapping[str, Any], field: str, *, default: bool) -> bool:
    value = config.get(field)
    _require(value is None or isinstance(value, bool), config, field, "true or false")
    return default if value is None else bool(value)


def _count(config: Mapping[str, Any], field: str) -> int:
    value = config.get(field)
    _require(type(value) is int and value > 0, config, field, "a positive integer")
    return int(config[field])


def _number(config: Mapping[str, Any], field: str, default: float | None = None) -> float:
    value: Any = config.get(field)
    if value is None and default is not None:
        return default
    _require(type(value) in (int, float) and 0 < value < math.inf, config, field, "a positive number")
    return float(value)


def _require(fits: bool, config: Mapping[str, Any], field: str, expected: str) -> None:
    if fits:
        return
    found = f"is {config[field]!r}" if field in config else "is missing"
    raise CheckpointError(f"config.json: {field} {found}; expected {expected}.")
