"""The BM1684X as the roofline sees it: a few rates, fitted to the compiler's own cycles of full-width nets.

How well they fit is a table of its own: docs/explanation/estimate.md, which ``scripts/estimate_tables.py`` writes.
"""

from __future__ import annotations

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.dtypes import DType

CYCLES_PER_S = 1e9
"""Of the compiler's cycle model."""


class ChipModel(Value):
    """Rates of one chip; bytes, operations and seconds.

    :param memory_bytes: the most that a board has.
    :param bandwidth: of device memory, as its maker states it: what a share of the limit is a share of.
    :param weights: weights that stream in, large transfers.
    :param scales: scales and zero points, small transfers.
    :param history: keys and values of the cache.
    :param activations: what passes between the operators of a net, through device memory where it is too large.
    :param scores: attention scores, most of which stay in the chip.
    :param half_operations: matrix products in 16 bits; ``full_operations`` in 32.
    :param overhead_s: of a block net for one token: what is neither loaded nor computed, above all waiting.
    :param tokens_overhead_s: of one for more tokens, which are multiplied in another way.
    :param interleaved_s: added for each token where the rotary embedding pairs neighbours, which takes strided copies;
        twice as much in nets of more than ``interleaved_tokens``.
    :param copy_s: starting one copy between host and device. Not measured on hardware.
    :param link: bytes a second of such a copy. Not measured on hardware.
    """

    memory_bytes: int = 16 << 30
    bandwidth: float = 68.26e9
    weights: float = 57.9e9
    scales: float = 22e9
    history: float = 25e9
    activations: float = 20e9
    scores: float = 40e9
    half_operations: float = 16e12
    full_operations: float = 2e12
    overhead_s: float = 0.03e-3
    tokens_overhead_s: float = 0.25e-3
    interleaved_s: float = 11e-6
    interleaved_tokens: int = 128
    copy_s: float = 40e-6
    link: float = 2e9

    def operations(self, dtype: DType) -> float:
        """Operations a second of matrix products whose activations are of ``dtype``."""
        return self.full_operations if dtype is DType.F32 else self.half_operations


BM1684X = ChipModel()
HOST_S = 0.3e-3
"""What the runtime adds to a pass while the chip waits: measured by scripts/bench_host.py on a desktop processor."""
