"""What to expect of each quantization mode, from measurements.

Largest ``1 - cosine`` that was measured, on the CPU and on the simulator (TPU-MLIR 1.30.2), which agree to 5 % in the
integer modes. *Nets*: any output of any net, of the demo model, of a random model of width 64, and of a random one of
full width (4096). *Logits*: any of the 1383 tokens with which the demo model answers its 54 dialogues; all of them were
the reference's own choice, in every mode.

=====  ==========================  =======
mode   nets                        logits
=====  ==========================  =======
none   9e-14 / 1e-13 / 1e-12       2e-12
f16    2e-7 / - / -                4e-6
bf16   2e-5 / - / -                1.2e-4
int8   2.6e-5 / 1.1e-4 / 5.4e-5    4e-4
int4   7.7e-3 / 2.2e-2 / 1.5e-2    0.10
=====  ==========================  =======

Models of other widths and depths are left some room beyond that, more where it costs nothing: a defect (a mask, a
position, a layer's weights) moves a cosine by a tenth or more. Regret follows from the logits' limit: a cosine of
``c`` means an error of about ``sqrt(2 - 2 c)`` standard deviations, and a choice may be wrong by a few of those.
"""

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
    QuantMode.NONE: Limits(net_cosine=0.99999, logits_cosine=0.99999, regret=0.01),
    QuantMode.F16: Limits(net_cosine=0.99999, logits_cosine=0.9999, regret=0.05),
    QuantMode.BF16: Limits(net_cosine=0.9997, logits_cosine=0.998, regret=0.2),
    QuantMode.INT8: Limits(net_cosine=0.9995, logits_cosine=0.997, regret=0.25),
    QuantMode.INT4: Limits(net_cosine=0.97, logits_cosine=0.8, regret=0.8),
}
