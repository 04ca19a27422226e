"""The proof of the short way, once for a checkpoint: a net of real weights must come out as the compiler makes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tpudeploy.checkpoint.weights import ModelWeights
from tpudeploy.compile.bmodel.hollow import same_bmodel
from tpudeploy.compile.chip_nets import ChipCompiler, keep_only
from tpudeploy.compile.chip_pieces import piece_name, split_pieces, write_pieces
from tpudeploy.compile.chip_template import NetTemplate
from tpudeploy.compile.store import stage_key
from tpudeploy.compile.workshop import slice_digest
from tpudeploy.contracts.net import NetSpec
from tpudeploy.contracts.slices import ModelExport, Slice
from tpudeploy.graph.export import write_slice_weights
from tpudeploy.graph.slice_weights import slice_arrays

_RECORD_NAME = "proof.json"


def cheapest_nets(part: Slice) -> tuple[NetSpec, ...]:
    """The smallest nets of a slice that together read all of its weights: one for each half of a layer."""
    found: dict[object, NetSpec] = {}
    for net in sorted(part.nets, key=lambda net: (net.stage.new_tokens, net.stage.cache_length)):
        found.setdefault(net.part, net)
    return tuple(found.values())


def prove(
    chip: ChipCompiler,
    part: Slice,
    weights: ModelWeights,
    export: ModelExport,
    templates: Mapping[str, NetTemplate],
) -> tuple[bool, bool]:
    """Compile the cheapest nets of a slice both ways.

    :param templates: by net name; each with a layout.
    :returns: whether all bytes are equal (but for the time of making), and whether that was known already.
    """
    nets = cheapest_nets(part)
    inputs = {
        "templates": [templates[net.name].key for net in nets],
        "weights": slice_digest(part, weights, export),
    }
    key = stage_key("chip-proof", inputs, code=("compile", "graph"))

    def produce(folder: Path) -> None:
        equal = _equal(chip, part, nets, weights, export, templates, folder)
        (folder / _RECORD_NAME).write_text(json.dumps({"equal": equal}))
        keep_only(folder, _RECORD_NAME)

    folder, reused = chip.store.run(key, produce, what=part.name)
    return bool(json.loads((folder / _RECORD_NAME).read_text())["equal"]), reused


def _equal(
    chip: ChipCompiler,
    part: Slice,
    nets: Sequence[NetSpec],
    weights: ModelWeights,
    export: ModelExport,
    templates: Mapping[str, NetTemplate],
    folder: Path,
) -> bool:
    long, short = folder / "long", folder / "short"
    long.mkdir()
    short.mkdir()
    weight_path = folder / write_slice_weights(part, weights, export, folder).name
    compiled: dict[str, Path] = {}
    for net in nets:
        work = folder / net.name
        work.mkdir()
        chip.compile(templates[net.name].text, net.name, weight_path, work, kind=net.kind, log=f"proof-{net.name}")
        keep_only(work, "net.bmodel")
        compiled[net.name] = work / "net.bmodel"
    weight_path.unlink()
    arrays = dict(slice_arrays(part, weights, export.config, export.seq_length))
    scheme = chip.scheme.of_kind(nets[0].kind)
    if set(split_pieces(compiled, nets, long)) != set(write_pieces(nets, templates, arrays, scheme, short)):
        return False
    # Joining, even of one, writes the description anew: a shortened name leaves no trace.
    for side in (long, short):
        chip.combine(
            [side / piece_name(net) for net in nets], folder / f"{side.name}.bmodel", what=f"proof-{side.name}"
        )
    return same_bmodel(folder / "long.bmodel", folder / "short.bmodel")
