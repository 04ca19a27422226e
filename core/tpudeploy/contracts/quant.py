"""Quantization modes, by the names that users type, and what each means on the chip."""

from __future__ import annotations

from enum import Enum

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import NetKind
from tpudeploy.errors import UnknownNameError

INT4_GROUP_SIZE = 64
INT4_HEAD_BITS = 8
"""Of the output layer in INT4 models. In 4 bits another token wins in up to a fifth of all close cases, in 8 in one of
a hundred; that costs 4 to 6 % of the speed (docs/explanation/performance.md)."""


class QuantMode(str, Enum):
    """What users choose with ``--quant``."""

    NONE = "none"
    F16 = "f16"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"


class QuantScheme(Value):
    """A mode, resolved for one model.

    :param mode: what the user chose.
    :param activation: element type of activations, of the KV cache and of net inputs and outputs.
    :param weight_bits: bits of one weight of a linear layer (32, 16, 8 or 4).
    :param group_size: inputs that share one scale; 0 where no weight is quantized.
    :param vendor_name: the compiler's name of it, for example ``"W8F16"``.
    :param head_bits: bits of one weight of the output layer, where they are others.
    """

    mode: QuantMode
    activation: DType
    weight_bits: int
    group_size: int
    vendor_name: str
    head_bits: int | None = None

    def of_kind(self, kind: NetKind) -> QuantScheme:
        """The scheme of nets of one kind: that of the output layer may be another."""
        bits = self.head_bits
        if bits is None or kind is not NetKind.LM_HEAD:
            return self
        name = self.vendor_name.replace(f"W{self.weight_bits}", f"W{bits}")
        return self.model_copy(update={"weight_bits": bits, "vendor_name": name, "head_bits": None})

    @property
    def weight_bytes_per_element(self) -> float:
        """Bytes of one linear weight with its share of scale (2 bytes) and zero point (half or one byte)."""
        if not self.group_size:
            return self.weight_bits / 8
        return self.weight_bits / 8 + (2 + self.weight_bits / 8) / self.group_size


def parse_quant_mode(name: str) -> QuantMode:
    """Return the mode called ``name``; :raises UnknownNameError: there is none."""
    try:
        return QuantMode(name.lower())
    except ValueError:
        raise UnknownNameError("quantization mode", name, [mode.value for mode in QuantMode]) from None


def resolve_quant(mode: QuantMode, half: DType) -> QuantScheme:
    """Resolve ``mode`` for a model.

    :param half: the 16-bit type in which this model's activations are safe (F16, or BF16 where F16 overflows).
    """
    tag = half.value.upper()
    match mode:
        case QuantMode.NONE:
            return QuantScheme(mode=mode, activation=DType.F32, weight_bits=32, group_size=0, vendor_name="F32")
        case QuantMode.F16 | QuantMode.BF16:
            dtype = DType(mode.value)
            return QuantScheme(
                mode=mode, activation=dtype, weight_bits=16, group_size=0, vendor_name=mode.value.upper()
            )
        case QuantMode.INT8 | QuantMode.INT4:
            bits = 8 if mode is QuantMode.INT8 else 4
            return QuantScheme(
                mode=mode,
                activation=half,
                weight_bits=bits,
                group_size=INT4_GROUP_SIZE,
                vendor_name=f"W{bits}{tag}",
                head_bits=INT4_HEAD_BITS if bits == 4 else None,
            )
