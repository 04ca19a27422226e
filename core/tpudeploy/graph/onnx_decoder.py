"""The decoder's nets as ONNX graphs: embedding, blocks over a cache, output head.

They are written node by node, not traced: no shape arithmetic to fold away afterwards, no exporter that changes with
each torch release, and no weights in memory. What keeps them honest is that every slice is run against the torch
blocks as it is exported (see ``export.check``). Weights are stored (in, out), the form in which a matmul reads them.
"""

from __future__ import annotations

from tpudeploy.contracts.decoder import AttentionForm, DecoderConfig, MaskForm, RopeLayout
from tpudeploy.contracts.net import LayerPart, NetKind, NetSpec
from tpudeploy.errors import CompileError
from tpudeploy.graph.onnx_attention import Chunk, attend, query_chunks
from tpudeploy.graph.onnx_builder import OnnxBuilder


def build_graph(config: DecoderConfig, net: NetSpec, seq_length: int) -> OnnxBuilder:
    """Describe one net.

    :param config: the decoder with its patches applied; of a chip's part, with that part's counts.
    :param seq_length: rows of the rotary tables.
    :raises CompileError: the decoder is in a form that ONNX cannot express; a patch is missing.
    """
    if config.form.attention is not AttentionForm.MATMUL or config.form.mask is not MaskForm.ADDITIVE:
        raise CompileError(
            "this decoder still uses fused attention or a filled mask, which the ONNX route cannot express.",
            hint="Its adapter must patch form.attention to 'matmul' and form.mask to 'additive'.",
        )
    builder = OnnxBuilder(net.name)
    match net.kind:
        case NetKind.EMBEDDING | NetKind.EMBEDDING_ONE:
            table = builder.weight("embedding.weight", config.vocab_size, config.hidden_size)
            builder.op("Gather", table, "input_ids", name=net.outputs[0].name, axis=0)
        case NetKind.LM_HEAD:
            states = _rms_norm(builder, config, add_partials(builder, net), "final_norm")
            _linear(builder, states, "lm_head", config.hidden_size, config.vocab_size, output="logits")
        case _:
            block = BlockGraph(builder, config, net, seq_length)
            block.write() if net.part is LayerPart.WHOLE else block.write_part()
    return builder


def add_partials(b: OnnxBuilder, net: NetSpec, *, output: str = "") -> str:
    """The residual stream that a net works on: its first input, and the chips' partial sums where there are any."""
    states, *rest = [spec.name for spec in net.inputs if spec.name.startswith(("input_states", "hidden_", "partial_"))]
    for position, partial in enumerate(rest, start=1):
        last = position == len(rest)
        states = b.op("Add", states, partial, name=output if last and output else f"residual.{position}")
    return states


class BlockGraph:
    """Writes one decoder layer for one stage. Names follow graph.blocks; shapes are noted beside each reshape."""

    def __init__(self, builder: OnnxBuilder, config: DecoderConfig, net: NetSpec, seq_length: int) -> None:
        self.b = builder
        self.config = config
        self.net = net
        self.over_cache = net.stage.cache_length > 0
        self.seq_length = seq_length

    def write(self) -> None:
        """Add all nodes of the layer."""
        chunks = query_chunks(self.b, self.net.stage)
        states = _rms_norm(self.b, self.config, "input_states", "attention_norm")
        attended = self._post_norm(self._attention(states, chunks), "post_attention_norm")
        states = self.b.op("Add", "input_states", attended, name="attention.residual")
        ffn = self._post_norm(self._ffn(_rms_norm(self.b, self.config, states, "ffn_norm")), "post_ffn_norm")
        self.b.op("Add", states, ffn, name="output_states")

    def write_part(self) -> None:
        """Add the nodes of one half of the layer, for a chip that computes a part of it: a partial sum."""
        attention = self.net.part is LayerPart.ATTENTION
        chunks = query_chunks(self.b, self.net.stage) if attention else []
        states = add_partials(self.b, self.net, output="output_states")
        if attention:
            self._attention(_rms_norm(self.b, self.config, states, "attention_norm"), chunks, output="partial")
        else:
            self._ffn(_rms_norm(self.b, self.config, states, "ffn_norm"), output="partial")

    def _post_norm(self, states: str, name: str) -> str:
        return _rms_norm(self.b, self.config, states, name) if self.config.post_norms else states

    def _attention(self, states: str, chunks: list[Chunk], *, output: str = "") -> str:
        config, b = self.config, self.b
        hidden = config.hidden_size
        cos, sin = self._table("rope.cos"), self._table("rope.sin")
        query = self._rotate(self._heads(states, "q", config.num_heads), cos, sin, "q.rotated")
        key = self._rotate(self._heads(states, "k", config.num_kv_heads), cos, sin, "present_k")
        value = self._heads(states, "v", config.num_kv_heads, output="present_v")
        if self.over_cache:
            key = b.op("Concat", "history_k", key, name="all_k", axis=1)  # (1, total, kv_heads, head_dim)
            value = b.op("Concat", "history_v", value, name="all_v", axis=1)
        context = attend(b, config, chunks, query, key, value)
        return _linear(b, context, "o", config.q_size, hidden, output=output)

    def _heads(self, states: str, name: str, heads: int, *, output: str = "") -> str:
        """(1, new, hidden) -> (1, new, heads, head_dim)."""
        config, b = self.config, self.b
        size = heads * config.head_dim
        flat = _linear(b, states, name, config.hidden_size, size)
        if config.qkv_bias:
            flat = b.op("Add", flat, b.weight(f"{name}.bias", size), name=f"{name}.biased")
        return b.op("Reshape", flat, b.ints(1, -1, heads, config.head_dim), name=output or f"{name}.heads")

    def _table(self, name: str) -> str:
        """Rows of a rotary table by position: (1, new, 1, rotary_dim / 2)."""
        b = self.b
        table = b.weight(name, self.seq_length, self.config.rotary_dim // 2)
        rows = b.op("Gather", table, "position_ids", name=f"{name}.rows", axis=0)
        return b.op("Unsqueeze", rows, b.ints(2), name=f"{name}.by_head")

    def _rotate(self, states: str, cos: str, sin: str, output: str) -> str:
        """Rotary embedding of (1, new, heads, head_dim), see graph.blocks.rotate."""
        config, b = self.config, self.b
        half, rotary = config.rotary_dim // 2, config.rotary_dim
        stem = states.split(".", maxsplit=1)[0]
        if config.form.rope_layout is RopeLayout.HALF_SPLIT:
            first, second = self._slice(states, 0, half), self._slice(states, half, rotary)
        else:
            first, second = self._slice(states, 0, rotary, 2), self._slice(states, 1, rotary, 2)
        real = b.op(
            "Sub",
            b.op("Mul", first, cos, name=f"{stem}.first_cos"),
            b.op("Mul", second, sin, name=f"{stem}.second_sin"),
            name=f"{stem}.real",
        )
        imaginary = b.op(
            "Add",
            b.op("Mul", second, cos, name=f"{stem}.second_cos"),
            b.op("Mul", first, sin, name=f"{stem}.first_sin"),
            name=f"{stem}.imaginary",
        )
        parts = [*self._paired(real, imaginary, stem)]
        if rotary < config.head_dim:
            parts.append(self._slice(states, rotary, config.head_dim))
        return b.op("Concat", *parts, name=output, axis=3)

    def _paired(self, real: str, imaginary: str, stem: str) -> list[str]:
        b = self.b
        if self.config.form.rope_layout is RopeLayout.HALF_SPLIT:
            return [real, imaginary]
        pair = [b.op("Unsqueeze", part, b.ints(4), name=f"{part}.column") for part in (real, imaginary)]
        pairs = b.op("Concat", *pair, name=f"{stem}.pairs", axis=4)  # (1, new, heads, half, 2)
        flat = b.ints(0, 0, 0, self.config.rotary_dim)
        return [b.op("Reshape", pairs, flat, name=f"{stem}.interleaved")]

    def _slice(self, states: str, start: int, stop: int, step: int = 1) -> str:
        b = self.b
        return b.op(
            "Slice",
            states,
            b.ints(start),
            b.ints(stop),
            b.ints(3),
            b.ints(step),
            name=f"{states}.{start}_{stop}_{step}",
        )

    def _ffn(self, states: str, *, output: str = "") -> str:
        config, b = self.config, self.b
        gate = _linear(b, states, "gate", config.hidden_size, config.ffn_size)
        gate = b.op("Mul", gate, b.op("Sigmoid", gate, name="gate.sigmoid"), name="gate.silu")
        up = _linear(b, states, "up", config.hidden_size, config.ffn_size)
        gated = b.op("Mul", gate, up, name="ffn.gated")
        return _linear(b, gated, "down", config.ffn_size, config.hidden_size, output=output)


def _linear(b: OnnxBuilder, states: str, name: str, size_in: int, size_out: int, *, output: str = "") -> str:
    return b.op("MatMul", states, b.weight(f"{name}.weight", size_in, size_out), name=output or f"{name}.linear")


def _rms_norm(b: OnnxBuilder, config: DecoderConfig, states: str, name: str) -> str:
    square = b.op("Pow", states, b.number(2.0), name=f"{name}.square")
    mean = b.op("ReduceMean", square, name=f"{name}.mean", axes=[-1], keepdims=1)
    root = b.op("Sqrt", b.op("Add", mean, b.number(config.norm_eps), name=f"{name}.safe"), name=f"{name}.root")
    scale = b.op("Div", b.number(1.0), root, name=f"{name}.scale")
    normal = b.op("Mul", states, scale, name=f"{name}.normal")
    return b.op("Mul", normal, b.weight(f"{name}.weight", config.hidden_size), name=f"{name}.scaled")
