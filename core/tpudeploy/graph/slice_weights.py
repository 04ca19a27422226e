"""The weights of one slice, in the form in which its nets read them.

A slice is what shares weights: the embedding, one layer, or the output head. Linear weights are transposed to
(in, out); projections are permuted when the rotary layout is patched; a layer brings its rotary tables along.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from tpudeploy.checkpoint.weights import ModelWeights
from tpudeploy.contracts.decoder import DecoderConfig, RopeLayout
from tpudeploy.contracts.dtypes import Array
from tpudeploy.contracts.slices import Slice
from tpudeploy.graph.blocks import RotaryTable
from tpudeploy.graph.rope import to_half_split, to_interleaved
from tpudeploy.graph.shard_weights import shard_weight


def slice_arrays(
    part: Slice, weights: ModelWeights, config: DecoderConfig, seq_length: int
) -> Iterator[tuple[str, Array]]:
    """Names (as the ONNX graph has them) and float32 numbers of a slice's weights, one at a time.

    :param config: the decoder with its patches applied; ``weights.config`` is the published one.
    :param seq_length: rows of the rotary tables.
    :returns: those of matmuls are transposed views, (in, out), of what torch stores.
    """
    for name in part.weights:
        short = name.split(".", 2)[2] if part.layer is not None else name
        tensor = _in_form(short, weights.read_f32(name), weights.config, config)
        if part.shard is not None:
            tensor = shard_weight(short, tensor, part.shard, config.head_dim)
        # A matmul reads (in, out); torch stores (out, in). The embedding is a table, not a matmul.
        matmul = tensor.ndim == 2 and short != "embedding.weight"
        tensor = tensor.contiguous()
        yield short, (tensor.T if matmul else tensor).numpy()
    if part.layer is not None:
        table = RotaryTable(config, seq_length)
        yield "rope.cos", table.cos.numpy()
        yield "rope.sin", table.sin.numpy()


def _in_form(short: str, tensor: Tensor, published: DecoderConfig, patched: DecoderConfig) -> Tensor:
    permuted = short.split(".", maxsplit=1)[0] in {"q", "k"}
    if not permuted or published.form.rope_layout is patched.form.rope_layout:
        return tensor
    permute = to_half_split if patched.form.rope_layout is RopeLayout.HALF_SPLIT else to_interleaved
    return permute(tensor, patched.head_dim, patched.rotary_dim)
