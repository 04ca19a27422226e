"""What to expect of each quantization mode."""

from __future__ import annotations

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.quant import QuantMode


class Limits(Value):
    """How far from the reference is still as expected.

    :param net_cosine: smallest cosine similarity of any output of a net.
    :param logits_cosine: smallest cosine similarity of the whole model's logits, at any token.
    :param regret: largest :attr:`PromptRow.regret`.
    """

    net_cosine: float
    logits_cosine: float
    regret: float


LIMITS = {
    QuantMode.NONE: Limits(net_cosine=0.99999, logits_cosine=0.9999, regret=0.01),
    QuantMode.F16: Limits(net_cosine=0.9999, logits_cosine=0.999, regret=0.05),
    QuantMode.BF16: Limits(net_cosine=0.999, logits_cosine=0.99, regret=0.2),
    QuantMode.INT8: Limits(net_cosine=0.9999, logits_cosine=0.999, regret=0.1),
    QuantMode.INT4: Limits(net_cosine=0.99, logits_cosine=0.95, regret=0.6),
}
