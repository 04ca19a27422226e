"""The net set: which nets a model is cut into, and the exact shape of everything they exchange.

Names follow LLM-TPU's contract where the meaning is the same:

=====================  ======================================================  ==============
name                   inputs -> outputs                                        LLM-TPU's
=====================  ======================================================  ==============
``embedding``          input_ids (1, S) -> input_states (1, S, hidden)          same
``embedding_cache``    the same for one token                                   same
``block_i``            S new tokens, no history                                 same
``block_kv_i``         S new tokens over a cache of C                           same
``block_cache_i``      one new token over a cache of C                          same
``block_verify_i``     a few drafted tokens over a cache of C                   none
``lm_head``            hidden states of the last token -> logits (1, 1, vocab)  logits, not top-1
=====================  ======================================================  ==============

A block takes ``input_states (1, S, hidden)``, ``position_ids (1, S)``, ``attention_mask (1, 1, S, C + S)`` (added to
the scores: 0 shows, :data:`MASK_VALUE` hides) and ``history_k``, ``history_v (1, C, kv_heads, head_dim)``; it gives
``output_states (1, S, hidden)`` and ``present_k``, ``present_v (1, S, kv_heads, head_dim)``, whose place in memory is
chosen by the caller: written straight into the cache, no copy is ever made. Several stages of one kind
differ in S or C; all but the first carry them in their name: ``block_cache_0_c2048``, ``block_kv_0_s256_c2048``.
Net sets for several chips are in :mod:`tpudeploy.contracts.net_split`.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from pydantic import Field, model_validator

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.dtypes import DType

MASK_VALUE = -10000.0
"""Added to the score of a hidden position. Finite, so that a row that hides everything stays a number in F16."""


class NetKind(str, Enum):
    """What a net does; the value is the stem of its name."""

    EMBEDDING = "embedding"
    EMBEDDING_ONE = "embedding_cache"
    PREFILL_FIRST = "block"
    PREFILL = "block_kv"
    VERIFY = "block_verify"
    DECODE = "block_cache"
    LM_HEAD = "lm_head"
    OTHER = "other"
    """A net of a bmodel that others made: only its name and its tensors are known, its stage means nothing."""

    @property
    def is_block(self) -> bool:
        """Whether there is one such net a layer."""
        return self in (NetKind.PREFILL_FIRST, NetKind.PREFILL, NetKind.VERIFY, NetKind.DECODE)


class LayerPart(str, Enum):
    """How much of a layer a block net computes: all of it, or one of the halves that several chips share."""

    WHOLE = "whole"
    ATTENTION = "attention"
    FFN = "ffn"


class Split(str, Enum):
    """How a model is divided over several chips: every layer over all of them, or layer after layer."""

    TENSOR = "tensor"
    PIPELINE = "pipeline"


class Stage(Value):
    """One static shape of a pass: ``new_tokens`` tokens over a cache of ``cache_length`` tokens."""

    new_tokens: int = Field(gt=0)
    cache_length: int = Field(ge=0)

    def __str__(self) -> str:
        return f"{self.new_tokens}x{self.cache_length}"


class TensorSpec(Value):
    """Name, shape and element type of a net's input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: DType

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def size_bytes(self) -> int:
        """Bytes it fills on a device."""
        return self.elements * self.dtype.itemsize_bytes

    def __str__(self) -> str:
        return f"{self.name} {self.dtype.value}{list(self.shape)}"


class NetSpec(Value):
    """One net: what it is, and what goes in and out.

    :param layer: which decoder layer, for block nets; None otherwise.
    :param part: how much of that layer.
    :param chip: index of the chip within the bundle's devices that runs it.
    """

    name: str
    kind: NetKind
    stage: Stage
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layer: int | None = None
    part: LayerPart = LayerPart.WHOLE
    chip: int = 0

    @property
    def pattern(self) -> str:
        """The name that nets of all layers share, with ``i`` for the layer: ``block_kv_i_s256_c2048``."""
        stem = f"{self.kind.value}_{self.layer}"
        if self.layer is None or not self.name.startswith(stem):
            return self.name
        return f"{self.kind.value}_i{self.name[len(stem) :]}"

    def input(self, name: str) -> TensorSpec:
        """The input called ``name``; :raises KeyError: there is none."""
        return next((spec for spec in self.inputs if spec.name == name), None) or _missing(self.name, name)

    def output(self, name: str) -> TensorSpec:
        """The output called ``name``; :raises KeyError: there is none."""
        return next((spec for spec in self.outputs if spec.name == name), None) or _missing(self.name, name)


def _missing(net: str, name: str) -> TensorSpec:
    raise KeyError(f"net {net} has no tensor {name}")


class NetSet(Value):
    """All nets of one model at one quantization: the contract between export, compile and runtime.

    :param seq_length: tokens that a conversation may hold (prompt and answer together).
    :param activation: element type of states, masks and caches as the backend sees them.
    :param chips: how many chips the nets are divided over.
    :param split: how they are divided, where there is more than one.
    """

    config: DecoderConfig
    seq_length: int = Field(gt=0)
    activation: DType
    nets: tuple[NetSpec, ...]
    chips: int = Field(default=1, ge=1)
    split: Split | None = None

    @model_validator(mode="after")
    def _unique(self) -> NetSet:
        names = [net.name for net in self.nets]
        if len(set(names)) != len(names):
            raise ValueError("net names repeat")
        return self

    def net(self, name: str) -> NetSpec:
        """The net called ``name``; :raises KeyError: there is none."""
        for net in self.nets:
            if net.name == name:
                return net
        raise KeyError(name)

    def of_kind(self, kind: NetKind, *, layer: int | None = None) -> Iterator[NetSpec]:
        """Nets of one kind (and layer), in the order in which they were declared."""
        return (net for net in self.nets if net.kind is kind and (layer is None or net.layer == layer))

    def stages(self, kind: NetKind) -> tuple[Stage, ...]:
        """The stages in which a kind exists, in the order in which they were declared."""
        return tuple(dict.fromkeys(net.stage for net in self.of_kind(kind)))

    def shared_by_layer(self, layer: int) -> tuple[NetSpec, ...]:
        """Every net over the weights of one layer."""
        return tuple(net for net in self.nets if net.layer == layer)
