"""config.json of ChatGLM3: what is read, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.shared_data import shared_json, shared_path

from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.dtypes import DType
from tpudeploy.errors import CheckpointError
from tpudeploy_chatglm3.adapter import ChatGLM3
from tpudeploy_chatglm3.config import read_config
from tpudeploy_chatglm3.variants import DEMO

CHATGLM3_6B: dict[str, Any] = {
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "eos_token_id": 2,
    "ffn_hidden_size": 13696,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "original_rope": True,
    "padded_vocab_size": 65024,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 8192,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}
COUNTS = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "multi_query_group_num",
    "kv_channels",
    "ffn_hidden_size",
    "padded_vocab_size",
    "seq_length",
)


def read(**changes: Any) -> DecoderConfig:
    return read_config({**CHATGLM3_6B, **changes})


def variant_config(name: str) -> DecoderConfig:
    return {variant.name: variant.config for variant in ChatGLM3().variants()}[name]


def test_the_published_6b_is_read_field_by_field() -> None:
    assert read() == DecoderConfig(
        num_layers=28,
        hidden_size=4096,
        num_heads=32,
        num_kv_heads=2,
        head_dim=128,
        ffn_size=13696,
        vocab_size=65024,
        seq_length=8192,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rotary_dim=64,
        qkv_bias=True,
        dtype=DType.F16,
        eos_ids=(2,),
    )
    assert variant_config("6b") == read()


def test_variants_hold_what_their_published_configs_say() -> None:
    golden = shared_json("golden", "configs.json")
    base = {**golden["THUDM/chatglm3-6b"], "model_type": "chatglm"}
    assert read_config(base) == variant_config("6b")
    long = golden["THUDM/chatglm3-6b-32k"]
    long_config = {**base, "seq_length": long["seq_length"], "rope_ratio": long["rope_ratio"]}
    assert read_config(long_config) == variant_config("6b-32k")


def test_tiny_chatglm3_is_read() -> None:
    config = read_config(shared_json("golden", "tiny-chatglm3", "config.json"))
    assert (config.num_heads, config.num_kv_heads, config.head_dim, config.rotary_dim) == (4, 2, 16, 8)
    assert config.dtype is DType.F32


def test_the_demo_is_read_and_is_a_variant() -> None:
    config = read_config(json.loads((DEMO / "config.json").read_text(encoding="utf-8")))
    assert variant_config("demo") == config
    (demo,) = (variant for variant in ChatGLM3().variants() if variant.name == "demo")
    assert demo.bundled == DEMO
    assert {"config.json", "model.safetensors", "tokenizer.model"} <= {path.name for path in DEMO.iterdir()}


@pytest.mark.parametrize(("ratio", "theta"), [(None, 10000.0), (1, 10000.0), (50, 500000.0), (0.5, 5000.0)])
def test_rope_ratio_multiplies_the_base(ratio: float | None, theta: float) -> None:
    assert read(rope_ratio=ratio).rope_theta == theta


@pytest.mark.parametrize(
    ("name", "dtype"), [("float16", DType.F16), ("bfloat16", DType.BF16), ("float32", DType.F32), (None, DType.F16)]
)
def test_dtype(name: str | None, dtype: DType) -> None:
    assert read(torch_dtype=name).dtype is dtype


def test_newer_transformers_write_dtype_instead_of_torch_dtype() -> None:
    config = {field: value for field, value in CHATGLM3_6B.items() if field != "torch_dtype"}
    assert read_config({**config, "dtype": "bfloat16"}).dtype is DType.BF16
    with pytest.raises(CheckpointError, match="dtype is 'int8'"):
        read_config({**config, "dtype": "int8"})


def test_missing_flags_take_the_values_of_the_authors_code() -> None:
    flags = {field for field, value in CHATGLM3_6B.items() if isinstance(value, bool)}
    config = read_config({field: value for field, value in CHATGLM3_6B.items() if field not in flags})
    assert config == read(multi_query_attention=False, add_qkv_bias=False)
    assert (config.num_kv_heads, config.qkv_bias) == (32, False)


@pytest.mark.parametrize("field", COUNTS)
@pytest.mark.parametrize("value", [None, 0, -1, 2.0, "28", True, [28]])
def test_a_bad_count_is_named_with_its_value(field: str, value: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(**{field: value})
    assert f"{field} is {value!r}; expected a positive integer" in str(caught.value)


@pytest.mark.parametrize("field", [*COUNTS, "layernorm_epsilon"])
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: {field} is missing; expected a positive"):
        read_config({name: value for name, value in CHATGLM3_6B.items() if name != field})


@pytest.mark.parametrize("field", ["layernorm_epsilon", "rope_ratio"])
@pytest.mark.parametrize("value", [0, -1e-5, float("nan"), float("inf"), "1e-5", True])
def test_a_bad_number_is_named_with_its_value(field: str, value: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(**{field: value})
    assert f"{field} is {value!r}; expected a positive number" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("model_type", "llama", "'chatglm'"),
        ("model_type", "glm", "'chatglm'"),
        ("model_type", None, "'chatglm'"),
        ("add_bias_linear", True, "expected false"),
        ("rmsnorm", False, "expected true"),
        ("post_layer_norm", False, "expected true"),
        ("apply_residual_connection_post_layernorm", True, "expected false"),
        ("original_rope", False, "expected true"),
        ("tie_word_embeddings", True, "expected false"),
        ("tie_word_embeddings", "no", "expected true or false"),
        ("multi_query_attention", 1, "expected true or false"),
        ("add_qkv_bias", "yes", "expected true or false"),
        ("pre_seq_len", 128, "P-tuning"),
        ("quantization_bit", 4, "unquantized"),
        ("torch_dtype", "int8", "one of float16, bfloat16, float32"),
        ("kv_channels", 126, "a multiple of 4"),
        ("multi_query_group_num", 3, "a divisor of num_attention_heads"),
    ],
)
def test_unsupported_features_are_refused_by_name(field: str, value: object, expected: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(**{field: value})
    assert f"{field} is {value!r}" in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize("unset", [{"pre_seq_len": None, "quantization_bit": 0}, {"quantization_bit": None}])
def test_switched_off_features_are_accepted(unset: dict[str, Any]) -> None:
    assert read(**unset) == read()


@pytest.mark.parametrize(
    "changes",
    [
        {"seq_length": 131072, "rope_ratio": 500},
        {"seq_length": 512, "rope_ratio": 500},  # edited by hand, as the users of earlier ports did
        {"seq_length": 131072},
    ],
)
def test_128k_is_refused_with_the_reason(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"128K is not supported.*ln 2048.*seq_length") as caught:
        read(**changes)
    assert "6b-32k" in caught.value.hint


def test_128k_is_listed_with_the_reason_and_cannot_be_fetched() -> None:
    (variant,) = (variant for variant in ChatGLM3().variants() if variant.name == "6b-128k")
    assert "not supported" in variant.note
    assert (variant.huggingface, variant.modelscope, variant.bundled) == (None, None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"padded_vocab_size": 151552},
        {"eos_token_id": [151329, 151336, 151338]},
        {"num_layers": 40, "rope_ratio": 500},
    ],
)
def test_glm4_is_called_by_its_name(changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="GLM-4, not ChatGLM3") as caught:
        read(**changes)
    field = next(iter(changes))
    assert f"{field} is {changes[field]!r}" in str(caught.value)
    assert "glm4" in caught.value.hint


def test_published_glm4_configs_are_called_by_their_name() -> None:
    golden = shared_json("golden", "configs.json")["THUDM/glm-4-9b-chat"]
    for config in (golden, shared_json("golden", "tiny-glm4", "config.json")):
        with pytest.raises(CheckpointError, match="GLM-4, not ChatGLM3"):
            read_config({**config, "model_type": "chatglm"})


def test_stop_ids_are_read_one_or_many() -> None:
    assert read().eos_ids == (2,)
    assert read(eos_token_id=[2, 64795, 64797]).eos_ids == (2, 64795, 64797)
    assert read(eos_token_id=None).eos_ids == ()
    with pytest.raises(CheckpointError, match="eos_token_id"):
        read(eos_token_id="</s>")


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"_name_or_path": "THUDM/chatglm2-6b"}, "ChatGLM2-6B"), ({"position_encoding_2d": True}, "ChatGLM-6B")],
)
def test_older_relatives_are_called_by_their_names(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name}, not ChatGLM3"):
        read(**changes)


def test_the_digest_of_the_published_tokenizer_is_right() -> None:
    import hashlib

    data = shared_path("tokenizers", "chatglm3", "tokenizer.model").read_bytes()
    (variant,) = (variant for variant in ChatGLM3().variants() if variant.name == "6b")
    (file,) = (file for file in variant.files if file.path == "tokenizer.model")
    assert (file.size_bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_what_is_fetched_is_config_tokenizer_and_every_shard_once() -> None:
    listed = {variant.name: [file.path for file in variant.files] for variant in ChatGLM3().variants()}
    shards = [f"model-0000{number}-of-00007.safetensors" for number in range(1, 8)]
    small = ["tokenizer.model", "config.json", "tokenizer_config.json"]
    assert listed["6b"] == [*small, "model.safetensors.index.json", *shards]
    bins = [f"pytorch_model-0000{number}-of-00007.bin" for number in range(1, 8)]
    assert listed["6b-32k"] == [*small, "pytorch_model.bin.index.json", *bins]
    assert listed["demo"] == []
