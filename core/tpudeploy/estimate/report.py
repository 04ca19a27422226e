"""What an estimate says: first token, tokens a second, speculation, and each net."""

from __future__ import annotations

from tpudeploy.contracts.base import Value
from tpudeploy.estimate.chip import HOST_S
from tpudeploy.estimate.costs import Source
from tpudeploy.estimate.passes import Times


class PromptEstimate(Value):
    """The first token of an answer to a prompt that nothing of is in the cache.

    :param passes: stages of the passes, in order, for example ``("128x512", "128x512")``.
    """

    prompt_tokens: int
    first_token_s: float
    passes: tuple[str, ...]
    times: Times


class TokenEstimate(Value):
    """One further token, where the conversation has ``context_tokens`` with it.

    :param stage: of its pass.
    :param bytes_per_token: weights and cache that have to be read, of all chips together.
    :param limit_tokens_per_s: were those bytes read at the full bandwidth of every chip, and nothing else done.
    :param limit_share: of that limit, how much is reached.
    """

    context_tokens: int
    stage: str
    token_s: float
    tokens_per_s: float
    bytes_per_token: int
    limit_tokens_per_s: float
    limit_share: float
    times: Times


class SpeculationEstimate(Value):
    """A pass that checks drafted tokens.

    :param drafted_tokens: most drafts a pass: one token of each pass is known already.
    :param cost: of a pass, in plain tokens.
    :param break_even_tokens: tokens a pass, from which on speculation is worth it; one comes without any draft.
    :param break_even_acceptance: share of the drafts that have to be right for that; over 1 where no share is enough.
    :param tokens_per_pass: what was assumed, and ``tokens_per_s`` and ``speed_up`` what follows; None without.
    """

    context_tokens: int
    stage: str
    drafted_tokens: int
    pass_s: float
    cost: float
    break_even_tokens: float
    break_even_acceptance: float
    tokens_per_pass: float | None = None
    tokens_per_s: float | None = None
    speed_up: float | None = None
    times: Times


class NetEstimate(Value):
    """Nets that differ only in their layer.

    :param net: their name, with ``i`` for the layer.
    :param seconds: of one launch of one; ``dma_s`` and ``arithmetic_s`` overlap in it.
    :param moved_bytes: traffic of device memory of one launch.
    """

    net: str
    stage: str
    chip: int
    count: int
    source: Source
    seconds: float
    dma_s: float
    arithmetic_s: float
    moved_bytes: int


class Estimate(Value):
    """Modelled speed of a model on BM1684X chips.

    :param title: for example ``chatglm3:6b``.
    :param source: where the nets' times come from; the worst, where nets differ.
    :param compiler: name and version of what told them; empty without.
    :param first_token_s: of the first prompt.
    :param tokens_per_s: of the first context, and so the next three.
    :param device_memory_bytes: of each chip.
    :param note: what a reader must know; empty where there is nothing.
    """

    title: str
    quant: str
    seq_length: int
    chips: int
    split: str
    source: Source
    compiler: str
    first_token_s: float
    tokens_per_s: float
    bytes_per_token: int
    limit_tokens_per_s: float
    limit_share: float
    device_memory_bytes: tuple[int, ...]
    prompts: tuple[PromptEstimate, ...]
    contexts: tuple[TokenEstimate, ...]
    speculation: tuple[SpeculationEstimate, ...]
    nets: tuple[NetEstimate, ...]
    note: str = ""


class EstimateOptions(Value):
    """What to estimate; empty takes lengths that suit the nets.

    :param contexts: tokens of a conversation, the one that is computed included.
    :param host_s: seconds of the host in each pass.
    :param tokens_per_pass: assumed for passes that check drafts.
    """

    prompts: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()
    host_s: float = HOST_S
    tokens_per_pass: float | None = None
