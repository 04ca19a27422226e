"""The plugin comes in by the entry point that pyproject.toml names, and brings nothing heavy."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

from tpudeploy.contracts.quant import QuantMode
from tpudeploy.plugins import load_plugins
from tpudeploy_chatglm3.variants import DEMO

ENTRY_POINT = importlib.metadata.EntryPoint("chatglm3", "tpudeploy_chatglm3.plugin", "tpudeploy")


def test_it_registers_one_model_by_its_hook() -> None:
    found = load_plugins([ENTRY_POINT])
    (record,) = found.records
    assert (record.error, record.provides) == ("", ("model chatglm3",))
    assert record.hooks == ("tpudeploy_models",)
    adapter = found.model("chatglm3")
    assert adapter.default_variant in {variant.name for variant in adapter.variants()}
    assert isinstance(adapter.default_quant, QuantMode)


def test_every_tokenizer_file_is_in_the_bundled_checkpoint_and_on_each_list() -> None:
    adapter = load_plugins([ENTRY_POINT]).model("chatglm3")
    for name in adapter.tokenizer_files():
        assert (DEMO / name).is_file()
        assert all(name in {file.path for file in variant.files} for variant in adapter.variants() if variant.files)


def test_a_device_needs_nothing_heavy_to_read_a_prompt() -> None:
    code = """
import sys
from tpudeploy_chatglm3.plugin import tpudeploy_models
(adapter,) = tpudeploy_models()
heavy = {"torch", "transformers", "onnx", "onnxruntime", "safetensors", "typer"}
assert "sentencepiece" not in sys.modules, "a native library is loaded before text is read"
adapter.variants()
from tpudeploy_chatglm3.variants import DEMO
tokenizer = adapter.load_tokenizer(DEMO)
adapter.chat_template(tokenizer).encode([])
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
