"""Net templates: each net shape compiled once over random weights, and what of it depends on weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpudeploy.compile.bmodel.coefficients import CoefficientMap, UnknownLayoutError, learn_map
from tpudeploy.compile.bmodel.forms import WeightForms
from tpudeploy.compile.bmodel.hollow import Hollowed, write_hollow
from tpudeploy.compile.chip_nets import ChipCompiler, keep_only
from tpudeploy.compile.profile import PROFILE_NAME, read_profile
from tpudeploy.compile.random_weights import RandomWeights
from tpudeploy.compile.store import stage_key
from tpudeploy.contracts.bundle import NetProfile
from tpudeploy.contracts.net import NetSpec
from tpudeploy.contracts.quant import QuantScheme
from tpudeploy.graph.onnx_builder import OnnxBuilder

HOLLOW_NAME = "hollow.bmodel"
_LEARNT_NAME = "learnt.json"
_KERNEL_NAME = "kernel.bin"
_LONG_NAME = "template".ljust(96, "_")
"""Net names replace this one in place, so none may be longer."""
_CODE = ("compile", "graph")


@dataclass(frozen=True)
class NetTemplate:
    """A compiled net shape.

    :param key: identifies the shape with its quantization.
    :param text: the MLIR text, for the long way.
    :param folder: holds the hollow bmodel and its blocks.
    :param layout: what the net loads; None where the compiler stores something in an unknown form.
    :param problem: why there is no layout.
    :param weights: digest of the random weights' coefficients, for which the hollow bmodel was made.
    :param blocks: digest -> file name of what every net of this shape has in common.
    :param profile: what the compiler's model of the chip says of it; None where it says nothing.
    """

    key: str
    text: Path
    folder: Path
    layout: CoefficientMap | None
    problem: str
    weights: str
    blocks: dict[str, str]
    profile: NetProfile | None

    @property
    def hollow(self) -> Path:
        """The bmodel without weights and chip program."""
        return self.folder / HOLLOW_NAME


def make_template(
    chip: ChipCompiler, net: NetSpec, graph: OnnxBuilder, random: RandomWeights
) -> tuple[NetTemplate, bool]:
    """Compile a net's shape, and learn what of it depends on weights; also whether that was there already."""
    text, _ = chip.text(net, graph, random)
    scheme = chip.scheme.of_kind(net.kind)
    key = stage_key(
        "net-template",
        {"text": chip.text_key(net, graph), "scheme": scheme.digest(), "tools": chip.toolchain.version},
        code=_CODE,
    )

    def produce(folder: Path) -> None:
        weight_path, _ = random.file(graph)
        chip.compile(text, _LONG_NAME, weight_path, folder, kind=net.kind, log=f"template-{net.kind.value}-{net.stage}")
        hollowed = write_hollow(folder / "net.bmodel", folder / HOLLOW_NAME)
        learnt = _learn(folder / "net.bmodel", hollowed, weight_path, scheme)
        blocks = {digest: _KERNEL_NAME for digest in hollowed.blocks if digest not in hollowed.weights}
        for digest in blocks:
            copy_block(folder / "net.bmodel", hollowed, digest, folder / _KERNEL_NAME)
        record = learnt | {"weights": next(iter(hollowed.weights), ""), "blocks": blocks}
        (folder / _LEARNT_NAME).write_text(json.dumps(record))
        keep_only(folder, HOLLOW_NAME, _LEARNT_NAME, PROFILE_NAME, *blocks.values())

    folder, reused = chip.store.run(key, produce, what=f"the graph of {net.name}")
    return _read(key, text, folder), reused


def copy_block(source: Path, hollowed: Hollowed, digest: str, target: Path) -> None:
    """Write one block of a bmodel to a file of its own."""
    block = hollowed.blocks[digest]
    with source.open("rb") as stream, target.open("wb") as out:
        stream.seek(block.start)
        left = block.size
        while left:
            chunk = stream.read(min(left, 16 << 20))
            out.write(chunk)
            left -= len(chunk)


def link_or_copy(origin: Path, target: Path) -> None:
    """A hard link where the disk has them."""
    try:
        target.hardlink_to(origin)
    except OSError:
        shutil.copyfile(origin, target)


def _learn(bmodel: Path, hollowed: Hollowed, weight_path: Path, scheme: QuantScheme) -> dict[str, object]:
    """The layout, or why there is none."""
    if len(hollowed.weights) != 1:
        return {"problem": f"it has {len(hollowed.weights)} blocks of weights"}
    block = hollowed.blocks[hollowed.weights[0]]
    compiled = np.memmap(bmodel, dtype=np.uint8, mode="r", offset=block.start, shape=(block.size,))
    try:
        layout = learn_map(compiled, hollowed.regions[0], _forms(weight_path, scheme))
    except UnknownLayoutError as error:
        return {"problem": error.message}
    return {"layout": layout.model_dump(mode="json")}


def _forms(weight_path: Path, scheme: QuantScheme) -> Iterator[WeightForms]:
    with np.load(weight_path) as archive:
        for name in archive.files:
            yield WeightForms(name, archive[name], scheme)


def _read(key: str, text: Path, folder: Path) -> NetTemplate:
    record = json.loads((folder / _LEARNT_NAME).read_text())
    layout = record.get("layout")
    return NetTemplate(
        key=key,
        text=text,
        folder=folder,
        layout=CoefficientMap.model_validate(layout) if layout else None,
        problem=record.get("problem", ""),
        weights=record["weights"],
        blocks=record["blocks"],
        profile=read_profile(folder),
    )
