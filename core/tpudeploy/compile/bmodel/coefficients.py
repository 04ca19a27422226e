"""Which weight lies where, and in which form, in what a net loads: learnt from one compiled net, used for all layers.

The compiler's own output is the only source: every region of its weights must equal one form of one weight that it
was given, byte for byte, with zeros behind it. A net of which that cannot be said is compiled the long way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tpudeploy.compile.bmodel.forms import Form, WeightForms
from tpudeploy.contracts.base import Value
from tpudeploy.contracts.dtypes import Array
from tpudeploy.errors import CompileError

_PREFIX_BYTES = 64


class UnknownLayoutError(CompileError):
    """The weights of a compiled net are not all in forms that are known here."""


class Coefficient(Value):
    """One weight in one form.

    :param offset: within the net's weights, bytes.
    """

    offset: int
    size: int
    weight: str
    form: Form


class CoefficientMap(Value):
    """All that a net loads.

    :param size: bytes, with the zeros between and behind.
    """

    size: int
    coefficients: tuple[Coefficient, ...]

    @property
    def weights(self) -> set[str]:
        """Names of the weights that it takes."""
        return {item.weight for item in self.coefficients}


def learn_map(compiled: Array, regions: Sequence[tuple[int, int]], weights: Iterable[WeightForms]) -> CoefficientMap:
    """Find out what a compiled net's weights are.

    :param compiled: uint8, all that the net loads.
    :param regions: (offset, size) of what each operation reads.
    :param weights: what the compiler was given: random numbers, so that no two forms are alike.
    :raises UnknownLayoutError: a region is nothing of that, or could be two things, or something lies outside.
    """
    _check_regions(compiled, regions)
    starts = {
        compiled[offset : offset + min(size, _PREFIX_BYTES)].tobytes(): (offset, size) for offset, size in regions
    }
    if len(starts) != len(regions):
        raise UnknownLayoutError("two of its weights begin alike")
    found: dict[int, Coefficient] = {}
    for weight in weights:
        for form in weight.possible():
            if len(found) == len(regions):
                break  # of random numbers no second form can fit
            region = _region_of(weight, form, starts)
            size = _common_size(compiled, region, weight, form) if region else 0
            if not region or not size:
                continue
            if region[0] in found:
                raise UnknownLayoutError(f"{weight.name} as {form.value} equals {found[region[0]].weight}")
            found[region[0]] = Coefficient(offset=region[0], size=size, weight=weight.name, form=form)
    unknown = len(regions) - len(found)
    if unknown:
        raise UnknownLayoutError(f"{unknown} of its {len(regions)} weights are in no known form")
    return CoefficientMap(size=compiled.size, coefficients=tuple(found[offset] for offset in sorted(found)))


def _check_regions(compiled: Array, regions: Sequence[tuple[int, int]]) -> None:
    """The regions must be all that is there."""
    end = 0
    for offset, size in sorted(regions):
        if offset < end or compiled[end:offset].any():
            raise UnknownLayoutError("its weights overlap, or something lies between them")
        end = offset + size
    if end > compiled.size or compiled[end:].any():
        raise UnknownLayoutError("something lies behind its weights")


def _region_of(weight: WeightForms, form: Form, starts: Mapping[bytes, tuple[int, int]]) -> tuple[int, int] | None:
    """The region that begins as the weight does in this form."""
    first = next(weight.parts(form))
    for length in sorted({len(start) for start in starts}, reverse=True):
        prefix = first[:length].tobytes().ljust(length, b"\0")
        if prefix in starts:
            return starts[prefix]
    return None


def _common_size(compiled: Array, region: tuple[int, int], weight: WeightForms, form: Form) -> int:
    """Bytes of the weight in this form, if a region holds them and nothing else; otherwise 0."""
    position, end = region[0], region[0] + region[1]
    for part in weight.parts(form):
        if position + part.size > end or not np.array_equal(compiled[position : position + part.size], part):
            return 0
        position += part.size
    return 0 if compiled[position:end].any() else position - region[0]


def write_coefficients(layout: CoefficientMap, weights: Mapping[str, WeightForms], path: Path) -> str:
    """Write what a net loads; returns its SHA-256 (hex).

    :param weights: by name.
    :raises CompileError: the 16-bit type cannot hold a number.
    """
    sha = hashlib.sha256()
    position = 0
    last = {item.weight: item.offset for item in layout.coefficients}
    with path.open("wb") as stream:
        for item in layout.coefficients:
            padding = bytes(item.offset - position)
            stream.write(padding)
            sha.update(padding)
            position = item.offset
            for part in weights[item.weight].parts(item.form):
                stream.write(part.data)
                sha.update(part.data)
                position += part.size
            if position != item.offset + item.size:
                raise CompileError(f"{item.weight} has another size than that of the layer it was learnt from.")
            if last[item.weight] == item.offset:
                weights[item.weight].release()
        stream.write(bytes(layout.size - position))
        sha.update(bytes(layout.size - position))
    return sha.hexdigest()
