"""From a net set to an estimate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tpudeploy.contracts.bundle import CompilerInfo
from tpudeploy.contracts.net import NetKind, NetSet, NetSpec, Split
from tpudeploy.contracts.quant import QuantScheme
from tpudeploy.errors import SequenceTooLongError, UsageError
from tpudeploy.estimate.costs import NetCosts, Source, net_costs
from tpudeploy.estimate.passes import Passes, Times
from tpudeploy.estimate.report import (
    Estimate,
    EstimateOptions,
    NetEstimate,
    PromptEstimate,
    SpeculationEstimate,
    TokenEstimate,
)

DEFAULT_PROMPTS = (128, 512)


def estimate(
    title: str,
    nets: NetSet,
    scheme: QuantScheme,
    options: EstimateOptions,
    *,
    compiler: CompilerInfo | None = None,
    memory_bytes: Sequence[int] = (),
    note: str = "",
) -> Estimate:
    """Estimate a net set.

    :param compiler: what a bundle says of its compiler; None where nothing is compiled.
    :param memory_bytes: device memory of each chip.
    :raises UsageError: a length or number that cannot be, or drafts without a net that checks them.
    :raises SequenceTooLongError: a prompt or context that the nets do not hold.
    :raises BundleError: the net set cannot run.
    """
    prompts, contexts = _lengths(nets, options)
    costs = net_costs(nets, scheme, compiler)
    passes = Passes.of(nets, costs, host_s=options.host_s)
    first = tuple(_prompt(passes, tokens) for tokens in prompts)
    further = tuple(_token(passes, tokens) for tokens in contexts)
    sources = {cost.source for cost in costs.values()}
    worst = next(source for source in reversed(Source) if source in sources)
    return Estimate(
        title=title,
        quant=scheme.mode.value,
        seq_length=nets.seq_length,
        chips=nets.chips,
        split=nets.split.value if nets.split else "",
        source=worst,
        compiler=f"{compiler.name} {compiler.version}" if compiler and worst is not Source.ROOFLINE else "",
        first_token_s=first[0].first_token_s,
        tokens_per_s=further[0].tokens_per_s,
        bytes_per_token=further[0].bytes_per_token,
        limit_tokens_per_s=further[0].limit_tokens_per_s,
        limit_share=further[0].limit_share,
        device_memory_bytes=tuple(memory_bytes),
        prompts=first,
        contexts=further,
        speculation=_speculation(passes, further[0], options.tokens_per_pass),
        nets=_nets(nets, costs),
        note=note,
    )


def _lengths(nets: NetSet, options: EstimateOptions) -> tuple[tuple[int, ...], tuple[int, ...]]:
    longest = nets.seq_length
    stages = {min(net.stage.cache_length, longest) for net in nets.of_kind(NetKind.DECODE)}
    contexts = options.contexts or tuple(sorted(stages)) or (longest,)
    prompts = options.prompts or tuple(dict.fromkeys(min(tokens, longest) for tokens in DEFAULT_PROMPTS))
    for what, lengths in (("prompt", prompts), ("context", contexts)):
        for tokens in lengths:
            if tokens < 1:
                raise UsageError(f"a {what} has 1 token or more, not {tokens}.")
            if tokens > longest:
                raise SequenceTooLongError(
                    f"a {what} of {tokens} tokens is over the sequence length {longest}.",
                    hint=f"Choose {longest} or less, or a larger --seq-length.",
                )
    return prompts, contexts


def _prompt(passes: Passes, tokens: int) -> PromptEstimate:
    stages = tuple(passes.plan(0, tokens))
    times = Times()
    for index, stage in enumerate(stages):
        times += passes.time(stage, rows=1 if index + 1 == len(stages) else 0)
    return PromptEstimate(
        prompt_tokens=tokens,
        first_token_s=times.total_s,
        passes=tuple(str(stage) for stage in stages),
        times=times,
    )


def _token(passes: Passes, context: int) -> TokenEstimate:
    stage = passes.one(context - 1, 1)
    times = passes.time(stage, rows=1)
    needed = sum(passes.costs[net.name].work.needed_bytes for net in passes.launched(stage, rows=1))
    # Layers that follow each other over chips are read one after the other.
    at_once = 1 if passes.nets.split is Split.PIPELINE else passes.nets.chips
    limit = passes.chip.bandwidth * at_once / needed
    return TokenEstimate(
        context_tokens=context,
        stage=str(stage),
        token_s=times.total_s,
        tokens_per_s=1 / times.total_s,
        bytes_per_token=needed,
        limit_tokens_per_s=limit,
        limit_share=1 / times.total_s / limit,
        times=times,
    )


def _speculation(
    passes: Passes, plain: TokenEstimate, tokens_per_pass: float | None
) -> tuple[SpeculationEstimate, ...]:
    found = tuple(_checks(passes, plain, tokens_per_pass))
    if tokens_per_pass is None:
        return found
    most = max((check.drafted_tokens + 1 for check in found), default=0)
    if not most:
        raise UsageError(
            "these nets check no drafted tokens: a pass gives one token.", hint="Leave out --tokens-per-pass."
        )
    if not 1 <= tokens_per_pass <= most:
        raise UsageError(f"a pass gives between 1 and {most} tokens, not {tokens_per_pass:g}.")
    return found


def _checks(passes: Passes, plain: TokenEstimate, assumed: float | None) -> Iterator[SpeculationEstimate]:
    """Every pass whose tokens all get logits by one launch."""
    for rows in sorted(rows for rows in passes.heads if rows > 1):
        cached = min(plain.context_tokens - 1, passes.nets.seq_length - rows)
        stage = passes.one(cached, rows) if cached >= 0 else None
        if stage is None or stage.new_tokens != rows:
            continue
        times = passes.time(stage, rows)
        pass_s = times.total_s
        cost = pass_s / plain.token_s
        told = assumed if assumed is not None and assumed <= rows else None
        yield SpeculationEstimate(
            context_tokens=plain.context_tokens,
            stage=str(stage),
            drafted_tokens=rows - 1,
            pass_s=pass_s,
            cost=cost,
            break_even_tokens=cost,
            break_even_acceptance=max(0.0, (cost - 1) / (rows - 1)),
            tokens_per_pass=told,
            tokens_per_s=told / pass_s if told else None,
            speed_up=told / cost if told else None,
            times=times,
        )


def _nets(nets: NetSet, costs: NetCosts) -> tuple[NetEstimate, ...]:
    groups: dict[tuple[str, int, float], list[NetSpec]] = {}
    for net in nets.nets:
        groups.setdefault((net.pattern, net.chip, costs[net.name].seconds), []).append(net)
    return tuple(_net(members, costs) for members in groups.values())


def _net(members: Sequence[NetSpec], costs: NetCosts) -> NetEstimate:
    net = members[0]
    cost = costs[net.name]
    return NetEstimate(
        net=net.pattern,
        stage=str(net.stage),
        chip=net.chip,
        count=len(members),
        source=cost.source,
        seconds=cost.seconds,
        dma_s=cost.dma_s,
        arithmetic_s=cost.arithmetic_s,
        moved_bytes=cost.moved_bytes,
    )
