"""A whole model family of a third party: a config mapping, a weight table, a template and a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tpudeploy.contracts.adapter import ModelAdapter, ModelVariant
from tpudeploy.contracts.chat import ChatTemplate, Tokenizer
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.patch import Patch
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.contracts.weights import WeightRef, WeightTable, weight_shapes
from tpudeploy.errors import CheckpointError, TokenizerError

_NANO = {"layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 128, "vocab": 128, "context": 256}


class Acme(ModelAdapter):
    """Acme's language models."""

    name = "acme"
    summary = "Small models by a third party."
    default_variant = "nano"
    default_quant = QuantMode.INT4

    def variants(self) -> Sequence[ModelVariant]:
        """One of them."""
        return [ModelVariant(name="nano", config=self.read_config(_NANO), huggingface="acme/nano")]

    def read_config(self, config: Mapping[str, Any]) -> DecoderConfig:
        """Acme's own names of everything."""
        try:
            heads, hidden = config["heads"], config["hidden"]
            return DecoderConfig(
                num_layers=config["layers"],
                hidden_size=hidden,
                num_heads=heads,
                num_kv_heads=config["kv_heads"],
                head_dim=hidden // heads,
                ffn_size=config["ffn"],
                vocab_size=config["vocab"],
                seq_length=config["context"],
                norm_eps=1e-6,
                rope_theta=10000.0,
                rotary_dim=hidden // heads,
                qkv_bias=False,
            )
        except KeyError as error:
            raise CheckpointError(f"config.json lacks {error}.") from error

    def weight_table(self, config: DecoderConfig) -> WeightTable:
        """Acme stores each weight under its canonical name, below ``acme.``."""
        return {name: WeightRef(tensor=f"acme.{name}") for name, _ in weight_shapes(config)}

    def patches(self, config: DecoderConfig, *, seq_length: int) -> Sequence[Patch]:
        """What the export needs of any decoder."""
        fields = [("seq_length", config.seq_length, seq_length), ("form.mask", "masked_fill", "additive")]
        fields += [
            ("form.attention", "sdpa", "matmul"),
            ("form.rope_layout", "interleaved", "half_split"),
        ]
        return [
            Patch(name=field, field=field, before=old, after=new, reason="Acme says so.", changes="-", undo="-")
            for field, old, new in fields
        ]

    def chat_template(self, tokenizer: Tokenizer) -> ChatTemplate:
        """Acme's models do not chat."""
        raise TokenizerError("Acme's models have no chat template.")

    def load_tokenizer(self, folder: Path, config: DecoderConfig | None = None) -> Tokenizer:
        """Acme's models know numbers only."""
        raise TokenizerError("Acme's models have no tokenizer.", hint="Use --prompt-ids.")

    def tokenizer_files(self) -> Sequence[str]:
        """None."""
        return ()
