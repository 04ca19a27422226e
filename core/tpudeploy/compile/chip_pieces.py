"""A slice's nets as hollow bmodels, with its weights in files of their own: written directly, or by the compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tpudeploy.compile.bmodel.coefficients import write_coefficients
from tpudeploy.compile.bmodel.forms import WeightForms
from tpudeploy.compile.bmodel.hollow import dress_hollow, write_hollow
from tpudeploy.compile.chip_template import NetTemplate, copy_block, link_or_copy
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.net import NetSpec
from tpudeploy.contracts.quant import QuantScheme
from tpudeploy.errors import CompileError


def piece_name(net: NetSpec) -> str:
    """The file of a net's hollow bmodel in the folder of its slice."""
    return f"{net.name}.bmodel"


def write_pieces(
    nets: Sequence[NetSpec],
    templates: Mapping[str, NetTemplate],
    arrays: Mapping[str, Array],
    scheme: QuantScheme,
    folder: Path,
) -> dict[str, str]:
    """Write nets from their templates and a slice's weights.

    :param templates: by net name; each with a layout.
    :param arrays: float32, what ``slice_arrays`` gives.
    :returns: the blocks that the hollow files leave out: SHA-256 (hex) -> file name.
    :raises CompileError: the 16-bit type cannot hold a number.
    """
    forms = {name: WeightForms(name, array, scheme) for name, array in arrays.items()}
    blocks: dict[str, str] = {}
    written: dict[str, str] = {}
    for net in nets:
        template = templates[net.name]
        if template.layout is None:
            raise CompileError(f"it is not known what the compiler stores for {net.name}: {template.problem}.")
        layout = template.layout.digest()
        if layout not in written:
            name = f"weights_{len(written)}.bin"
            written[layout] = write_coefficients(template.layout, forms, folder / name)
            blocks[written[layout]] = name
        for digest, name in template.blocks.items():
            if digest not in blocks:
                link_or_copy(template.folder / name, folder / name)
                blocks[digest] = name
        weights = {template.weights: written[layout]}
        dress_hollow(template.hollow, folder / piece_name(net), net.name, weights)
    return blocks


def split_pieces(compiled: Mapping[str, Path], nets: Sequence[NetSpec], folder: Path) -> dict[str, str]:
    """Split what the compiler made of nets into the same: hollow files, and their blocks.

    :param compiled: net name -> its bmodel.
    :returns: as ``write_pieces``.
    """
    blocks: dict[str, str] = {}
    for net in nets:
        source = compiled[net.name]
        hollowed = write_hollow(source, folder / piece_name(net))
        for digest in hollowed.blocks:
            if digest not in blocks:
                blocks[digest] = f"block_{digest[:16]}.bin"
                copy_block(source, hollowed, digest, folder / blocks[digest])
    return blocks
