"""A decoder small enough for any backend, with random weights and its mathematics in plain numpy.

It needs neither torch nor a checkpoint, so whoever writes a backend can check numbers with nothing but core.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tpudeploy.contracts.decoder import AttentionForm, DecoderConfig, GraphForm, MaskForm, RopeLayout
from tpudeploy.contracts.dtypes import Array, DType, from_storage, to_storage
from tpudeploy.contracts.net import MASK_VALUE, NetKind, NetSet, Stage
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.contracts.quant import QuantScheme

SEQ_LENGTH = 32
PREFILL = Stage(new_tokens=8, cache_length=SEQ_LENGTH)
VERIFY = Stage(new_tokens=4, cache_length=SEQ_LENGTH)
DECODE = Stage(new_tokens=1, cache_length=SEQ_LENGTH)

CONFIG = DecoderConfig(
    num_layers=2,
    hidden_size=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    ffn_size=192,
    vocab_size=256,
    seq_length=SEQ_LENGTH,
    norm_eps=1e-5,
    rope_theta=10000,
    rotary_dim=16,
    form=GraphForm(rope_layout=RopeLayout.HALF_SPLIT, mask=MaskForm.ADDITIVE, attention=AttentionForm.MATMUL),
)
"""The decoder, in the form in which nets are written."""


EVERY_PLAN = NetPlan(seq_length=SEQ_LENGTH, prefill=(PREFILL, Stage(new_tokens=8, cache_length=0)), verify=(VERIFY,))
"""Nets of every kind: prefill with and without a cache, verify, decode, embedding, output."""
CHIP_PLAN = NetPlan(seq_length=SEQ_LENGTH, prefill=(PREFILL,), verify=())
"""The nets that a conversation needs, and no more: each takes seconds to compile."""


def tiny_nets(activation: DType, plan: NetPlan = EVERY_PLAN) -> NetSet:
    """The nets of :data:`CONFIG`."""
    return plan_nets(CONFIG, plan, activation)


@dataclass
class TinyDecoder:
    """The decoder's numbers, and what they compute in float32.

    :param weights: slice name (``embedding``, ``layer_000``, ``lm_head``) -> name -> float32 array, as nets read them:
        linear weights are (in, out).
    """

    config: DecoderConfig = CONFIG
    seed: int = 0
    weights: dict[str, dict[str, Array]] = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        config = self.config
        hidden, vocab = config.hidden_size, config.vocab_size
        self.weights = {
            "embedding": {"embedding.weight": _normal(random, vocab, hidden)},
            **{f"layer_{layer:03d}": _layer(random, config) for layer in range(config.num_layers)},
            "lm_head": {
                "final_norm.weight": _norm(random, hidden),
                "lm_head.weight": _normal(random, hidden, vocab) / np.float32(hidden**0.5),
            },
        }

    def as_stored(self, quant: QuantScheme) -> TinyDecoder:
        """The decoder whose weights were rounded and quantized as ``quant`` does it, back in float32."""
        rounded = TinyDecoder(self.config, self.seed)
        for part in rounded.weights.values():
            for name, array in part.items():
                part[name] = _as_stored(name, array, quant)
        return rounded

    def embed(self, ids: Array) -> Array:
        """(1, seq) ids -> (1, seq, hidden)."""
        embedded: Array = self.weights["embedding"]["embedding.weight"][ids]
        return embedded

    def block(
        self, layer: int, states: Array, positions: Array, mask: Array, history: tuple[Array, Array] | None
    ) -> tuple[Array, Array, Array]:
        """One layer: the inputs and outputs of a block net, see :mod:`tpudeploy.contracts.net`."""
        config, w = self.config, self.weights[f"layer_{layer:03d}"]
        normal = _rms_norm(states, w["attention_norm.weight"], config.norm_eps)
        shape = (*states.shape[:2], -1, config.head_dim)  # (1, new, heads or kv_heads, head_dim)
        query, key, value = ((normal @ w[f"{n}.weight"] + w[f"{n}.bias"]).reshape(shape) for n in "qkv")
        cos, sin = (w[f"rope.{n}"][positions][:, :, None] for n in ("cos", "sin"))
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        keys, values = key, value
        if history is not None:
            keys, values = (np.concatenate(pair, axis=1) for pair in zip(history, (key, value), strict=True))
        repeats = config.num_heads // config.num_kv_heads
        keys, values = (np.repeat(a, repeats, axis=2) for a in (keys, values))  # (1, total, heads, head_dim)
        scores = np.einsum("bqhd,bkhd->bhqk", query, keys) / np.sqrt(config.head_dim) + mask
        context = np.einsum("bhqk,bkhd->bqhd", _softmax(scores), values).reshape(*states.shape[:2], -1)
        states = states + _post_norm(context @ w["o.weight"], w, "post_attention_norm.weight", config.norm_eps)
        normal = _rms_norm(states, w["ffn_norm.weight"], config.norm_eps)
        gate = normal @ w["gate.weight"]
        gated = gate / (1 + np.exp(-gate)) * (normal @ w["up.weight"])
        states = states + _post_norm(gated @ w["down.weight"], w, "post_ffn_norm.weight", config.norm_eps)
        return states, key, value

    def logits(self, states: Array) -> Array:
        """(1, seq, hidden) -> (1, seq, vocab)."""
        w = self.weights["lm_head"]
        logits: Array = _rms_norm(states, w["final_norm.weight"], self.config.norm_eps) @ w["lm_head.weight"]
        return logits

    def run(self, ids: Array) -> Array:
        """Logits (1, seq, vocab) of whole sequences, each position seeing those before it."""
        seq = ids.shape[1]
        states, positions = self.embed(ids), np.arange(seq)[None]
        for layer in range(self.config.num_layers):
            states, _, _ = self.block(layer, states, positions, causal_mask(seq, 0, 0), None)
        return self.logits(states)


def causal_mask(new: int, cached: int, cache_length: int) -> Array:
    """(1, 1, new, cache_length + new): the first ``cached`` rows of a cache and the new tokens, each up to itself."""
    mask = np.full((new, cache_length + new), MASK_VALUE, dtype=np.float32)
    mask[:, :cached] = 0
    mask[:, cache_length:][np.tri(new, dtype=bool)] = 0
    return mask[None, None]


def _normal(random: np.random.Generator, *shape: int) -> Array:
    return random.standard_normal(shape).astype(np.float32)


def _norm(random: np.random.Generator, size: int) -> Array:
    # Not all ones: the compiler folds such weights away.
    return 1 + _normal(random, size) / 8


def _layer(random: np.random.Generator, config: DecoderConfig) -> dict[str, Array]:
    hidden, ffn = config.hidden_size, config.ffn_size
    linear = {
        "q": (hidden, config.q_size),
        "k": (hidden, config.kv_size),
        "v": (hidden, config.kv_size),
        "o": (config.q_size, hidden),
        "gate": (hidden, ffn),
        "up": (hidden, ffn),
        "down": (ffn, hidden),
    }
    weights = {
        f"{name}.weight": _normal(random, *shape) / np.float32(shape[0] ** 0.5) for name, shape in linear.items()
    }
    weights |= {f"{name}.bias": _normal(random, linear[name][1]) / 4 for name in "qkv"}
    exponent = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / config.rotary_dim
    angles = np.outer(np.arange(config.seq_length, dtype=np.float32), config.rope_theta**-exponent)
    post_norms = ("post_attention_norm", "post_ffn_norm") if config.post_norms else ()
    return weights | {
        "attention_norm.weight": _norm(random, hidden),
        "ffn_norm.weight": _norm(random, hidden),
        **{f"{name}.weight": _norm(random, hidden) for name in post_norms},
        "rope.cos": np.cos(angles).astype(np.float32),
        "rope.sin": np.sin(angles).astype(np.float32),
    }


def _as_stored(name: str, array: Array, quant: QuantScheme) -> Array:
    quant = quant.of_kind(NetKind.LM_HEAD) if name == "lm_head.weight" else quant
    if quant.weight_bits == DType.F32.itemsize_bytes * 8:
        return array
    linear = array.ndim == 2 and name.endswith(".weight") and name != "embedding.weight"
    if not linear or not quant.group_size:
        return from_storage(to_storage(array, quant.activation), quant.activation)
    from tpudeploy.compile.cpu_nets.quantize import quantize

    values, scales, zeros = quantize(array.T, quant.weight_bits, quant.group_size)
    scales = from_storage(to_storage(scales, quant.activation), quant.activation)
    groups = values.reshape(*scales.shape, -1).astype(np.float32) - zeros[:, :, None]
    whole: Array = (groups * scales[:, :, None]).reshape(values.shape).T
    return whole


def _rms_norm(states: Array, weight: Array, eps: float) -> Array:
    normal: Array = states / np.sqrt(np.mean(states**2, axis=-1, keepdims=True) + np.float32(eps)) * weight
    return normal


def _post_norm(states: Array, weights: Mapping[str, Array], name: str, eps: float) -> Array:
    """What a sublayer yields, normalized where the decoder has a norm for it."""
    return _rms_norm(states, weights[name], eps) if name in weights else states


def _rotate(states: Array, cos: Array, sin: Array) -> Array:
    """(1, new, heads, head_dim) with the leading elements of each head rotated, halves paired."""
    half = cos.shape[-1]
    first, second, rest = np.split(states, [half, 2 * half], axis=-1)
    return np.concatenate((first * cos - second * sin, second * cos + first * sin, rest), axis=-1)


def _softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights: Array = powers / powers.sum(axis=-1, keepdims=True)
    return weights


def tiny_weight_slices(nets: NetSet) -> Mapping[str, tuple[str, ...]]:
    """Slice name -> names of the nets over its weights."""
    slices: dict[str, list[str]] = {}
    for net in nets.nets:
        stem = f"layer_{net.layer:03d}" if net.layer is not None else net.kind.value.removesuffix("_cache")
        slices.setdefault(stem, []).append(net.name)
    return {stem: tuple(names) for stem, names in slices.items()}
