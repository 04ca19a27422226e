"""How much device memory a model needs, computed before anything is loaded.

An estimate by arithmetic on shapes: weights and KV cache are exact, the rest is what compiled bundles seem to take.
"""

from __future__ import annotations

from pydantic import computed_field

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import NetKind
from tpudeploy.contracts.net_plan import default_cache_lengths, default_prefill, default_verify
from tpudeploy.contracts.quant import QuantScheme

INSTRUCTIONS_BYTES = 300_000
"""Of one net: 0.1 to 0.8 MB, measured with TPU-MLIR 1.30.2 on full-width layers."""
RUNTIME_BYTES = 64_000_000
"""What driver and runtime keep for one loaded bundle."""


class MemoryEstimate(Value):
    """Device memory of one model in one quantization mode, in bytes.

    :param weights_bytes: all weights; the embedding keeps 16 bits (32 where nothing is quantized).
    :param kv_bytes: keys and values of a full conversation, and of one prefill chunk beyond it.
    :param runtime_bytes: instructions of the nets, activations of the largest, and the runtime itself.
    """

    weights_bytes: int
    kv_bytes: int
    runtime_bytes: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total_bytes(self) -> int:
        """The sum."""
        return self.weights_bytes + self.kv_bytes + self.runtime_bytes


def estimate_memory(config: DecoderConfig, scheme: QuantScheme, seq_length: int) -> MemoryEstimate:
    """Estimate for the default net set at a sequence length."""
    return MemoryEstimate(
        weights_bytes=_weights_bytes(config, scheme),
        kv_bytes=_kv_bytes(config, scheme, seq_length),
        runtime_bytes=_runtime_bytes(config, scheme, seq_length),
    )


def _weights_bytes(config: DecoderConfig, scheme: QuantScheme) -> int:
    head = config.vocab_size * config.hidden_size
    attention = config.hidden_size * 2 * (config.q_size + config.kv_size)
    linear = config.num_layers * (attention + 3 * config.hidden_size * config.ffn_size)
    others = config.parameters - linear - 2 * head  # norms and biases
    unquantized = scheme.activation.itemsize_bytes
    quantized = linear * scheme.weight_bytes_per_element
    quantized += head * scheme.of_kind(NetKind.LM_HEAD).weight_bytes_per_element
    return int(quantized) + (head + others) * unquantized


def _kv_bytes(config: DecoderConfig, scheme: QuantScheme, seq_length: int) -> int:
    tokens = seq_length + _largest_pass(seq_length)
    return 2 * config.num_layers * tokens * config.kv_size * scheme.activation.itemsize_bytes


def _runtime_bytes(config: DecoderConfig, scheme: QuantScheme, seq_length: int) -> int:
    stages = (*default_cache_lengths(seq_length), *default_prefill(seq_length), *default_verify(seq_length))
    nets = len(stages) * config.num_layers + 3
    elements = scratch_elements(config, _largest_pass(seq_length), seq_length) + config.vocab_size
    width = max(scheme.activation.itemsize_bytes, DType.F16.itemsize_bytes)
    return RUNTIME_BYTES + nets * INSTRUCTIONS_BYTES + elements * width


def _largest_pass(seq_length: int) -> int:
    return max(stage.new_tokens for stage in default_prefill(seq_length))


def scratch_elements(config: DecoderConfig, new_tokens: int, cache_length: int) -> int:
    """Elements that a block net computes in: more than compiled nets were seen to take.

    At full width they need three quarters to four fifths of it, from 1 to 512 tokens over caches of up to 8192. Scores
    are not among it: the compiler fuses attention.
    """
    states = 4 * config.hidden_size + 3 * config.ffn_size + config.q_size + 2 * config.kv_size
    return new_tokens * states + (cache_length + new_tokens) * (new_tokens + 4 * config.kv_size)
