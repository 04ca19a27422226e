"""Attention over cached and new tokens as ONNX nodes, in the very form that the compiler fuses to one operator.

Queries of a long pass come in chunks, each of which takes only the keys that it can see: what the mask would hide from
all of a chunk is neither read nor computed. A hidden score adds exactly nothing, so the numbers stay the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.net import Stage
from tpudeploy.graph.onnx_builder import OnnxBuilder

QUERY_ROWS = 128
"""Measured (512 new tokens, no cache): attention takes 0.80 ms at once, 0.49 in chunks of 128, 0.52 in chunks of 64."""
LONG_CACHE = 4
"""Measured: over a cache of up to so many times the new tokens chunks cost less (512 x 0: 1.7 % of a layer, 512 x 512:
1.3 %, 512 x 2048: 0.1 %); over a longer one, all of which each chunk sees, more (512 x 8192: 3 %)."""


@dataclass(frozen=True)
class Chunk:
    """Query rows ``start`` to ``stop``, which see the first ``seen`` keys, those of the cache among them.

    :param mask: the tensor that hides some of these keys, (1, 1, stop - start, seen).
    :param name: what its nodes' names end with; empty where there is one chunk.
    """

    start: int
    stop: int
    seen: int
    mask: str
    name: str


def query_chunks(b: OnnxBuilder, stage: Stage) -> list[Chunk]:
    """Cut a stage's queries and their mask.

    Call it before any other node is added: the compiler lays weights out in the order in which it schedules, and
    slices of an input that come later would change that order, so that the stages of a layer could not share weights.
    """
    new, cache = stage.new_tokens, stage.cache_length
    if new <= QUERY_ROWS or cache > LONG_CACHE * new:
        return [Chunk(0, new, cache + new, "attention_mask", "")]
    chunks = []
    for start in range(0, new, QUERY_ROWS):
        stop = min(start + QUERY_ROWS, new)
        name = f".{start}_{stop}"
        ends = b.ints(stop, cache + stop)
        mask = b.op("Slice", "attention_mask", b.ints(start, 0), ends, b.ints(2, 3), name=f"attention_mask{name}")
        chunks.append(Chunk(start, stop, cache + stop, mask, name))
    return chunks


def attend(b: OnnxBuilder, config: DecoderConfig, chunks: list[Chunk], query: str, key: str, value: str) -> str:
    """Weighted values, (1, new, heads * head_dim).

    :param query: (1, new, heads, head_dim).
    :param key: (1, total, kv_heads, head_dim); ``value`` alike.
    """
    if len(chunks) == 1:
        return _attend_chunk(b, config, chunks[0], query, key, value)
    parts = []
    for chunk in chunks:
        rows = _rows(b, query, chunk.start, chunk.stop)
        last = chunk is chunks[-1]  # which sees all of them
        keys, values = (key, value) if last else (_rows(b, states, 0, chunk.seen) for states in (key, value))
        parts.append(_attend_chunk(b, config, chunk, rows, keys, values))
    return b.op("Concat", *parts, name="context.flat", axis=1)


def _rows(b: OnnxBuilder, states: str, start: int, stop: int) -> str:
    """Tokens ``start`` to ``stop`` of (1, n, ...)."""
    return b.op("Slice", states, b.ints(start), b.ints(stop), b.ints(1), name=f"{states}.rows_{start}_{stop}")


def _attend_chunk(b: OnnxBuilder, config: DecoderConfig, chunk: Chunk, query: str, key: str, value: str) -> str:
    name = chunk.name
    query = b.op("Transpose", query, name=f"q.by_head{name}", perm=[0, 2, 1, 3])  # (1, heads, rows, head_dim)
    keys = _expand(b, config, key, f"k{name}", perm=[0, 2, 3, 1])  # (1, heads, head_dim, seen)
    values = _expand(b, config, value, f"v{name}", perm=[0, 2, 1, 3])  # (1, heads, seen, head_dim)
    scores = b.op("MatMul", query, keys, name=f"scores{name}")
    scores = b.op("Mul", scores, b.number(1 / math.sqrt(config.head_dim)), name=f"scores.scaled{name}")
    scores = b.op("Add", scores, chunk.mask, name=f"scores.masked{name}")
    weights = b.op("Softmax", scores, name=f"scores.softmax{name}", axis=-1)
    context = b.op("MatMul", weights, values, name=f"context{name}")
    context = b.op("Transpose", context, name=f"context.by_token{name}", perm=[0, 2, 1, 3])
    return b.op("Reshape", context, b.ints(1, -1, config.q_size), name=f"context.flat{name}")


def _expand(b: OnnxBuilder, config: DecoderConfig, states: str, name: str, *, perm: list[int]) -> str:
    """(1, total, kv_heads, head_dim) -> one copy a query head, transposed by ``perm``."""
    repeats = config.num_heads // config.num_kv_heads
    wide = b.op("Unsqueeze", states, b.ints(3), name=f"{name}.group")
    wide = b.op("Expand", wide, b.ints(1, 1, 1, repeats, 1), name=f"{name}.repeated")
    flat = b.ints(1, -1, config.num_heads, config.head_dim)
    wide = b.op("Reshape", wide, flat, name=f"{name}.expanded")  # (1, total, heads, head_dim)
    return b.op("Transpose", wide, name=f"{name}.by_head", perm=perm)
