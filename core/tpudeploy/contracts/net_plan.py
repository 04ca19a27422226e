"""Plan the net set of a decoder-only model: pure arithmetic on shapes, no weights, no torch."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from tpudeploy.contracts.base import Value
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.dtypes import DType
from tpudeploy.contracts.net import NetKind, NetSet, NetSpec, Stage, TensorSpec
from tpudeploy.errors import SequenceTooLongError, UsageError

DEFAULT_SEQ_LENGTH = 512
DEFAULT_VERIFY_TOKENS = 16
"""Measured: a pass of 16 costs 8 (INT8) to 15 % (INT4) more than one of a single token, and no more than one of 8."""
DEFAULT_PREFILL_TOKENS = 128
"""Measured: up to here a pass costs little more than reading the weights, beyond it grows with its tokens."""
SHORT_PREFILL_TOKENS = 64
"""Measured: a chat's turn is seldom longer, and such a pass costs 12 (INT8) or 39 % (INT4) less than one of 128."""
MIDDLE_PREFILL_TOKENS = 256
LARGEST_PREFILL_TOKENS = 512
"""Measured: the chunk that costs least a token; beyond it the compiler reads weights more often."""
SHORTEST_CACHE = 512
CACHE_STEP = 4
"""Measured: four times the cache costs a token 2 to 6 % and a chunk 7 to 27 %; fewer steps would waste that, more would
cost nets."""


class NetPlan(Value):
    """What to choose about a net set; every other number follows from the model.

    :param seq_length: tokens that a conversation may hold; also the largest cache length.
    :param prefill: stages of prefill; empty means those of :func:`default_prefill`. A stage with cache length 0
        becomes a ``block_i`` net, which serves only the start of an empty cache.
    :param decode_cache_lengths: cache lengths of decode; empty means those of :func:`default_cache_lengths`.
    :param verify: stages of verify nets for drafted tokens; None means those of :func:`default_verify`, and empty
        means none.
    """

    seq_length: int = Field(default=DEFAULT_SEQ_LENGTH, gt=0)
    prefill: tuple[Stage, ...] = ()
    decode_cache_lengths: tuple[int, ...] = ()
    verify: tuple[Stage, ...] | None = None

    @property
    def verify_stages(self) -> tuple[Stage, ...]:
        """Stages of verify nets, the default among them."""
        return default_verify(self.seq_length) if self.verify is None else self.verify

    def simplest(self) -> NetPlan:
        """The plan with one stage of each kind where it leaves them open.

        For backends whose passes cost what their padded tokens cost, which further stages would not make cheaper.
        """
        chunk = Stage(new_tokens=min(DEFAULT_PREFILL_TOKENS, self.seq_length), cache_length=self.seq_length)
        return self.model_copy(
            update={
                "prefill": self.prefill or (chunk,),
                "decode_cache_lengths": self.decode_cache_lengths or (self.seq_length,),
                "verify": self.verify_stages[:1] if self.verify is None else self.verify,
            }
        )


def default_cache_lengths(seq_length: int) -> tuple[int, ...]:
    """Cache lengths that stages come in, so that short contexts do not pay for long ones; the whole one comes first.

    For example 8192, 512, 2048. A length is left out where the next would be less than four times as long.
    """
    lengths, length = [], SHORTEST_CACHE
    while length * CACHE_STEP <= seq_length:
        lengths.append(length)
        length *= CACHE_STEP
    return (seq_length, *lengths)


def default_prefill(seq_length: int) -> tuple[Stage, ...]:
    """The stages of prefill: chunks of 64, 128 and 512 tokens over each cache length, of 256 over the shortest.

    Sequences of up to 512 tokens have a pass of the whole length over no cache instead of the 512.
    """
    caches = default_cache_lengths(seq_length)
    chunks = [(new, cache) for new in (DEFAULT_PREFILL_TOKENS, SHORT_PREFILL_TOKENS) for cache in caches]
    chunks.append((MIDDLE_PREFILL_TOKENS, min(caches)))
    if seq_length <= LARGEST_PREFILL_TOKENS:
        chunks = [(new, cache) for new, cache in chunks if new < seq_length]
        chunks.append((seq_length, 0) if chunks else (seq_length, seq_length))
    else:
        chunks += [(LARGEST_PREFILL_TOKENS, cache) for cache in caches]
    return tuple(Stage(new_tokens=new, cache_length=cache) for new, cache in chunks)


def default_verify(seq_length: int) -> tuple[Stage, ...]:
    """The stages of verify nets: over each cache length, as decode nets are. A cache of one token has none."""
    if seq_length == 1:
        return ()
    tokens = min(DEFAULT_VERIFY_TOKENS, seq_length)
    return tuple(Stage(new_tokens=tokens, cache_length=cache) for cache in default_cache_lengths(seq_length))


def plan_nets(config: DecoderConfig, plan: NetPlan, activation: DType) -> NetSet:
    """Lay out every net of a decoder.

    :param activation: element type of states, masks and caches.
    :raises SequenceTooLongError: the plan asks for more tokens than the model was made for.
    :raises UsageError: a stage does not fit in the sequence length, or no stage serves the whole of it.
    """
    if plan.seq_length > config.seq_length:
        raise SequenceTooLongError(
            f"sequence length {plan.seq_length} is over this model's {config.seq_length} tokens.",
            hint=f"Choose --seq-length {config.seq_length} or less.",
        )
    prefill, decode = _stages(plan)
    verify = plan.verify_stages
    _check_stages(plan, prefill, decode)
    nets = [
        *_embeddings(config, activation, [stage.new_tokens for stage in (*prefill, *verify)]),
        *(
            net
            for layer in range(config.num_layers)
            for net in _layer_nets(config, activation, layer, prefill, decode, verify)
        ),
        *_heads(config, activation, {stage.new_tokens for stage in verify}),
    ]
    return NetSet(config=config, seq_length=plan.seq_length, activation=activation, nets=tuple(nets))


def _stages(plan: NetPlan) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
    lengths = plan.decode_cache_lengths or default_cache_lengths(plan.seq_length)
    decode = tuple(Stage(new_tokens=1, cache_length=length) for length in lengths)
    return plan.prefill or default_prefill(plan.seq_length), decode


def _check_stages(plan: NetPlan, prefill: tuple[Stage, ...], decode: tuple[Stage, ...]) -> None:
    for stage in (*prefill, *decode, *plan.verify_stages):
        if max(stage.cache_length, stage.new_tokens) > plan.seq_length:
            raise UsageError(f"stage {stage} (new tokens x cache) is over the sequence length {plan.seq_length}.")
    for what, stages in (("prefill", prefill), ("decode", decode)):
        if max(stage.cache_length for stage in stages) < plan.seq_length:
            raise UsageError(
                f"no {what} stage has a cache of the whole sequence length {plan.seq_length}.",
                hint=f"Add one, for example {stages[0].new_tokens}x{plan.seq_length}.",
            )


def _embeddings(config: DecoderConfig, activation: DType, lengths: list[int]) -> Iterator[NetSpec]:
    yield _embedding("embedding_cache", NetKind.EMBEDDING_ONE, config, activation, 1)
    for position, tokens in enumerate(dict.fromkeys(lengths)):
        name = "embedding" if position == 0 else f"embedding_s{tokens}"
        yield _embedding(name, NetKind.EMBEDDING, config, activation, tokens)


def _embedding(name: str, kind: NetKind, config: DecoderConfig, activation: DType, tokens: int) -> NetSpec:
    return NetSpec(
        name=name,
        kind=kind,
        stage=Stage(new_tokens=tokens, cache_length=0),
        inputs=(TensorSpec(name="input_ids", shape=(1, tokens), dtype=DType.I32),),
        outputs=(TensorSpec(name="input_states", shape=(1, tokens, config.hidden_size), dtype=activation),),
    )


def _layer_nets(
    config: DecoderConfig,
    activation: DType,
    layer: int,
    prefill: tuple[Stage, ...],
    decode: tuple[Stage, ...],
    verify: tuple[Stage, ...],
) -> Iterator[NetSpec]:
    first = tuple(stage for stage in prefill if not stage.cache_length)
    over_cache = tuple(stage for stage in prefill if stage.cache_length)
    for kind, stages in (
        (NetKind.PREFILL_FIRST, first),
        (NetKind.PREFILL, over_cache),
        (NetKind.VERIFY, verify),
        (NetKind.DECODE, decode),
    ):
        for position, stage in enumerate(stages):
            yield _block(_block_name(kind, layer, stage, primary=position == 0), kind, layer, stage, config, activation)


def _block_name(kind: NetKind, layer: int, stage: Stage, *, primary: bool) -> str:
    name = f"{kind.value}_{layer}"
    if primary:
        return name
    tokens = "" if kind is NetKind.DECODE else f"_s{stage.new_tokens}"
    return f"{name}{tokens}_c{stage.cache_length}"


def _block(name: str, kind: NetKind, layer: int, stage: Stage, config: DecoderConfig, activation: DType) -> NetSpec:
    new, cache = stage.new_tokens, stage.cache_length
    states = (1, new, config.hidden_size)
    mask = (1, 1, new, cache + new)

    def kv(prefix: str, length: int) -> tuple[TensorSpec, TensorSpec]:
        shape = (1, length, config.num_kv_heads, config.head_dim)
        return (
            TensorSpec(name=f"{prefix}_k", shape=shape, dtype=activation),
            TensorSpec(name=f"{prefix}_v", shape=shape, dtype=activation),
        )

    return NetSpec(
        name=name,
        kind=kind,
        stage=stage,
        layer=layer,
        inputs=(
            TensorSpec(name="input_states", shape=states, dtype=activation),
            TensorSpec(name="position_ids", shape=(1, new), dtype=DType.I32),
            TensorSpec(name="attention_mask", shape=mask, dtype=activation),
            *(kv("history", cache) if cache else ()),
        ),
        outputs=(TensorSpec(name="output_states", shape=states, dtype=activation), *kv("present", new)),
    )


def _heads(config: DecoderConfig, activation: DType, lengths: set[int]) -> Iterator[NetSpec]:
    for tokens in (1, *sorted(lengths - {1})):
        yield NetSpec(
            name="lm_head" if tokens == 1 else f"lm_head_s{tokens}",
            kind=NetKind.LM_HEAD,
            stage=Stage(new_tokens=tokens, cache_length=0),
            inputs=(TensorSpec(name="hidden_states", shape=(1, tokens, config.hidden_size), dtype=activation),),
            outputs=(TensorSpec(name="logits", shape=(1, tokens, config.vocab_size), dtype=activation),),
        )
