"""What no real manifest claims: bundles come from elsewhere, and a few bytes of JSON can ask for terabytes of memory.

The limits lie far above every model that fits on these chips (the largest known has some hundred nets), and far below
what would hurt: nothing is allocated and no loop is run before they were checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from tpudeploy.contracts.bundle import Manifest
from tpudeploy.contracts.net import NetSpec

MANIFEST_LIMIT_BYTES = 16 << 20
_MOST_FILES = 20_000
_MOST_NETS = 20_000
_MOST_LAYERS = 2_000
_MOST_CHIPS = 64
_LONGEST_SEQUENCE = 1 << 22
_LARGEST_TENSOR_BYTES = 1 << 36
_LARGEST_MASK_BYTES = 1 << 31
"""The host holds masks too; that of 8192 tokens over 131072 is as large."""
_MOST_TENSORS = 1_000
_LONGEST_NAME = 200
_LARGEST_BUNDLE_BYTES = 1 << 42


def find_absurdity(manifest: Manifest) -> str:
    """What in a manifest cannot be meant, as half a sentence; empty where all is well."""
    return next(_absurdities(manifest), "")


def _absurdities(manifest: Manifest) -> Iterator[str]:
    nets, config = manifest.nets, manifest.nets.config
    counts = (
        ("files", len(manifest.files), _MOST_FILES),
        ("nets", len(nets.nets), _MOST_NETS),
        ("net files", len(manifest.net_files), _MOST_NETS),
        ("counts of cycles", len(manifest.compiler.cycles), _MOST_NETS),
        ("profiles", len(manifest.compiler.profiles), _MOST_NETS),
        ("layers", config.num_layers, _MOST_LAYERS),
        ("chips", nets.chips, _MOST_CHIPS),
        ("tokens of sequence length", nets.seq_length, _LONGEST_SEQUENCE),
        ("tokens of context", config.seq_length, _LONGEST_SEQUENCE),
        ("bytes of files", sum(file.size_bytes for file in manifest.files), _LARGEST_BUNDLE_BYTES),
    )
    for what, count, most in counts:
        if count > most:
            yield f"it claims more than {most} {what}"  # the claim itself may have thousands of digits
    if not math.isfinite(config.rope_theta) or not math.isfinite(config.norm_eps):
        yield "nets.config holds numbers that are not finite"
    for text in (manifest.model, manifest.variant, manifest.compiler.name, manifest.compiler.version):
        if len(text) > _LONGEST_NAME or not text.isprintable():
            yield f"the name {text[:_LONGEST_NAME]!r} is too long or holds control characters"
    for net in nets.nets:
        yield from _of_net(net, manifest)


def _of_net(net: NetSpec, manifest: Manifest) -> Iterator[str]:
    nets = manifest.nets
    name = ascii(net.name[:_LONGEST_NAME])
    if len(net.name) > _LONGEST_NAME or not net.name.isprintable():
        yield f"the net's name {name} is too long or holds control characters"
    if not 0 <= net.chip < nets.chips:
        yield f"the net {name} is on none of its {nets.chips} chips"
    if net.layer is not None and not 0 <= net.layer < nets.config.num_layers:
        yield f"the net {name} is of none of its {nets.config.num_layers} layers"
    if max(net.stage.new_tokens, net.stage.cache_length) > _LONGEST_SEQUENCE:
        yield f"the net {name} is for more tokens than any model takes"
    if len(net.inputs) + len(net.outputs) > _MOST_TENSORS:
        yield f"the net {name} has more than {_MOST_TENSORS} tensors"
    for spec in (*net.inputs, *net.outputs):
        if len(spec.shape) > 8 or any(size < 1 or size > _LARGEST_TENSOR_BYTES for size in spec.shape):
            yield f"a tensor of the net {name} has a shape that no tensor has"
        elif spec.size_bytes > _LARGEST_TENSOR_BYTES:
            yield f"a tensor of the net {name} has {spec.size_bytes / 1e9:.0f} GB"
        elif spec.name == "attention_mask" and spec.size_bytes > _LARGEST_MASK_BYTES:
            yield f"the mask of the net {name} has {spec.size_bytes / 1e9:.0f} GB"
