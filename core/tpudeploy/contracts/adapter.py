"""A model adapter: everything that belongs to one model family, in the four parts that core asks for.

**patches**, **export slices**, **chat template**, **tokenizer**; beside them the family's variants, its config.json
and the names of its weights. An adapter for a decoder-only family is a config mapping, a weight table, a template and
a tokenizer: the blocks themselves live in core.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.chat import ChatTemplate, Tokenizer
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import NetSet
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.contracts.patch import Patch
from tpudeploy.contracts.quant import QuantMode
from tpudeploy.contracts.weights import WeightTable


class RemoteFile(Value):
    """One file of a published checkpoint.

    :param size_bytes: its size, or None where only the server knows.
    :param sha256: its digest (hex), or None where only the server knows.
    """

    path: str
    size_bytes: int | None = None
    sha256: str | None = None


class PublishedSpeed(Value):
    """How fast somebody else's program was, as published: one row of a table, to stand beside what is measured.

    :param platform: the machine.
    :param program: what ran the model.
    :param model: the file, as the table names it.
    :param quant: the quantization mode.
    :param first_token_s: seconds up to the first token.
    :param tokens_per_s: rate of the tokens after it.
    """

    platform: str
    program: str
    model: str
    quant: QuantMode
    first_token_s: float
    tokens_per_s: float


class ModelVariant(Value):
    """One published checkpoint of a family.

    :param name: what follows the colon in ``chatglm3:6b``.
    :param config: the decoder it holds; the checkpoint's own config.json wins where it differs.
    :param bundled: folder of a checkpoint that ships inside the plugin, or None.
    :param huggingface: repository ``owner/name`` on Hugging Face, or None.
    :param modelscope: repository ``owner/name`` on ModelScope, or None.
    :param files: the files to fetch; empty means what the server lists.
    :param note: a sentence for ``show`` and ``list-models``.
    :param speeds: figures that others published for it.
    """

    name: str
    config: DecoderConfig
    bundled: Path | None = None
    huggingface: str | None = None
    modelscope: str | None = None
    files: tuple[RemoteFile, ...] = ()
    note: str = ""
    speeds: tuple[PublishedSpeed, ...] = ()


class Tolerance(Value):
    """How far a slice may be from the torch reference, in float32.

    :param absolute: largest difference allowed, relative to the output's largest magnitude where that is over one.
    :param cosine: smallest cosine similarity allowed.
    """

    absolute: float = Field(default=2e-5, gt=0)
    cosine: float = Field(default=0.99999, le=1)


class ModelAdapter(ABC):
    """One model family. Subclass it, and register it with ``tpudeploy_models``."""

    name: str
    """What users type before the colon."""
    summary: str
    """One sentence."""
    default_variant: str
    """Which variant a bare name means."""
    default_quant: QuantMode = QuantMode.INT8
    half: DType = DType.F16
    """The 16-bit type in which activations are safe: BF16 where F16 overflows."""
    tolerance: Tolerance = Tolerance()
    """How exact each exported slice must be."""

    @abstractmethod
    def variants(self) -> Sequence[ModelVariant]:
        """The checkpoints that are known, the default among them."""

    @abstractmethod
    def read_config(self, config: Mapping[str, Any]) -> DecoderConfig:
        """Turn the checkpoint's config.json into a decoder.

        :raises CheckpointError: not of this family, incomplete, or with a feature that is not supported.
        """

    @abstractmethod
    def weight_table(self, config: DecoderConfig) -> WeightTable:
        """Where each canonical weight lies in this family's checkpoints."""

    def weight_tables(self, config: DecoderConfig) -> Sequence[WeightTable]:
        """All ways in which this family's checkpoints name the weights of such a model, the commonest first.

        The one that a checkpoint fits is used. The default knows one: :meth:`weight_table`.
        """
        return (self.weight_table(config),)

    def patches(self, config: DecoderConfig, *, seq_length: int) -> Sequence[Patch]:
        """Part 1, patches: what must change before export, in order. The default changes nothing."""
        return ()

    def slices(self, config: DecoderConfig, plan: NetPlan, activation: DType) -> NetSet:
        """Part 2, export slices: the nets to cut the model into. The default is core's decoder net set.

        :raises UsageError: the plan does not fit the model.
        """
        return plan_nets(config, plan, activation)

    @abstractmethod
    def chat_template(self, tokenizer: Tokenizer) -> ChatTemplate:
        """Part 3, chat template."""

    @abstractmethod
    def load_tokenizer(self, folder: Path, config: DecoderConfig | None = None) -> Tokenizer:
        """Part 4, tokenizer: load it from the files in ``folder``; no code from there is run.

        :param config: the model that it must belong to, where one is known.
        :raises TokenizerError: missing, corrupt, or another model's.
        """

    def tokenizer_files(self) -> Sequence[str]:
        """Names of the files that :meth:`load_tokenizer` reads; they travel with a bundle.

        A checkpoint need not have all of them: a family may publish its tokenizer in one form or another.
        """
        return ("tokenizer.model", "tokenizer_config.json")
