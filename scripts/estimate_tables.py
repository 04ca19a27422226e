"""Write the tables of docs/explanation/estimate.md: how well the roofline fits. ``--check`` only compares.

    python scripts/estimate_tables.py           # write them
    python scripts/estimate_tables.py --check   # exit code 1 where the page is not what the code says, or a fit is poor

The first table holds the roofline against the compiler's cycles of single nets at full width, the second against
figures that were published from hardware.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tpudeploy.compile.plan import model_patches
from tpudeploy.contracts.adapter import ModelAdapter, PublishedSpeed
from tpudeploy.contracts.decoder import DecoderConfig
from tpudeploy.contracts.net import LayerPart, NetKind, NetSet, NetSpec, Split, Stage
from tpudeploy.contracts.net_plan import NetPlan, plan_nets
from tpudeploy.contracts.net_split import split_nets
from tpudeploy.contracts.patch import apply_patches
from tpudeploy.contracts.quant import QuantMode, QuantScheme, resolve_quant
from tpudeploy.estimate.costs import net_costs
from tpudeploy.estimate.passes import Passes
from tpudeploy.plugins import registry

PAGE = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "estimate.md"
WORST_ERROR = 0.10
PUBLISHED_TOKENS = 512


@dataclass(frozen=True)
class Measured:
    """One net of full width (hidden 4096, ffn 13696) as compiled by TPU-MLIR 1.30.2.

    :param stage: new tokens and cache; of an output layer, the tokens and 0.
    :param cycles_ms: ``total_cycle`` of its profile.
    :param interleaved: whether the rotary embedding was written as published.
    """

    quant: str
    kind: NetKind
    stage: Stage
    cycles_ms: float
    part: LayerPart = LayerPart.WHOLE
    chips: int = 1
    interleaved: bool = False


def _blocks(
    quant: str,
    rows: dict[str, float],
    *,
    part: LayerPart = LayerPart.WHOLE,
    chips: int = 1,
    interleaved: bool = False,
) -> Iterator[Measured]:
    for stage, ms in rows.items():
        new, cache = map(int, stage.split("x"))
        kind = NetKind.DECODE if new == 1 else NetKind.PREFILL if cache else NetKind.PREFILL_FIRST
        found = Stage(new_tokens=new, cache_length=cache)
        yield Measured(quant, kind, found, ms, part, chips, interleaved)


_ONE = Stage(new_tokens=1, cache_length=0)
MEASURED = (
    *_blocks("f16", {"1x512": 7.095, "128x512": 11.530, "512x0": 24.896}),
    Measured("f16", NetKind.LM_HEAD, _ONE, 9.198),
    *_blocks(
        "int8",
        {"1x512": 4.015, "8x512": 4.439, "16x512": 4.337, "64x512": 4.618, "128x512": 5.244, "256x512": 9.072}
        | {"512x0": 17.236},
    ),
    Measured("int8", NetKind.LM_HEAD, _ONE, 5.173),
    Measured("int8", NetKind.LM_HEAD, Stage(new_tokens=8, cache_length=0), 5.198),
    Measured("int8", NetKind.LM_HEAD, Stage(new_tokens=16, cache_length=0), 5.228),
    *_blocks(
        "int4",
        {"1x512": 2.133, "8x512": 2.562, "128x512": 4.531, "256x512": 8.689, "512x0": 16.570}
        | {"1x2048": 2.199, "1x8192": 2.444, "128x2048": 4.905, "64x8192": 3.958},
    ),
    *_blocks("int8", {"1x512": 0.404, "128x512": 0.797}, part=LayerPart.ATTENTION, chips=2),
    *_blocks("int8", {"1x512": 1.647, "128x512": 2.110}, part=LayerPart.FFN, chips=2),
    Measured("int8", NetKind.LM_HEAD, _ONE, 2.588, chips=2),
    *_blocks("int8", {"64x512": 5.348, "128x512": 6.698, "256x512": 14.735, "512x0": 28.707}, interleaved=True),
    *_blocks("int4", {"512x0": 28.040}, interleaved=True),
)


def modelled_ms(row: Measured) -> float:
    """The roofline's time of the same net."""
    adapter = registry().model("chatglm3")
    config = adapter.variants()[0].config
    if not row.interleaved:
        config = _patched(adapter, config)
    config = config.model_copy(update={"num_layers": 1, "seq_length": 8192})
    scheme = resolve_quant(QuantMode(row.quant), adapter.half)
    length = max(row.stage.cache_length, row.stage.new_tokens)
    whole = Stage(new_tokens=1, cache_length=length)
    prefill = (row.stage, whole) if row.kind in (NetKind.PREFILL, NetKind.PREFILL_FIRST) else (whole,)
    several = row.kind is NetKind.LM_HEAD and length > 1
    verify = (Stage(new_tokens=length, cache_length=length),) if several else ()
    nets = plan_nets(config, NetPlan(seq_length=length, prefill=prefill, verify=verify), scheme.activation)
    nets = split_nets(nets, row.chips, Split.TENSOR)
    costs = net_costs(nets, scheme)
    return costs[_same(nets, row).name].seconds * 1e3


def _same(nets: NetSet, row: Measured) -> NetSpec:
    return next(net for net in nets.of_kind(row.kind) if (net.stage, net.part) == (row.stage, row.part))


def fit_table() -> tuple[str, float]:
    """The table of single nets, and the largest error in it."""
    lines = [
        "| net | weights | new tokens | cache | compiler, ms | roofline, ms | error |",
        "|---|---|---|---|---|---|---|",
    ]
    worst = 0.0
    for row in MEASURED:
        ms = modelled_ms(row)
        error = ms / row.cycles_ms - 1
        worst = max(worst, abs(error))
        cells = [_title(row), row.quant, str(row.stage.new_tokens), str(row.stage.cache_length)]
        lines.append(f"| {' | '.join(cells)} | {row.cycles_ms:.3f} | {ms:.3f} | {error:+.1%} |")
    return "\n".join([*lines, "", f"The largest error is {worst:.1%}."]), worst


def _title(row: Measured) -> str:
    name = "output layer, 65024 ids" if row.kind is NetKind.LM_HEAD else "layer"
    if row.chips > 1:
        name = (
            f"{name}, {row.part.value} of one of {row.chips} chips"
            if row.kind is not NetKind.LM_HEAD
            else f"half of {name}"
        )
    return f"{name}, interleaved rotary" if row.interleaved else name


def published_table() -> str:
    """The vendor's nets by the roofline, beside what was published."""
    lines = [
        "| model | program | mode | first token, s: published | modelled | beside the chip | tokens/s: published "
        "| modelled | a token, ms: published | modelled | beside the chip |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for adapter, row in published():
        first_s, token_s = vendor_times(adapter, row.quant)
        published_s = 1 / row.tokens_per_s
        cells = [
            adapter.name,
            row.program,
            row.quant.value,
            f"{row.first_token_s:.3f}",
            f"{first_s:.3f}",
            f"{row.first_token_s - first_s:+.3f}",
            f"{row.tokens_per_s:.3f}",
            f"{1 / token_s:.2f}",
            f"{published_s * 1e3:.1f}",
            f"{token_s * 1e3:.1f}",
            f"{(published_s - token_s) * 1e3:+.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def published() -> Iterator[tuple[ModelAdapter, PublishedSpeed]]:
    """What the plugins know of others' figures for their default models: one chip, 512 tokens."""
    for name in ("chatglm3", "glm4"):
        adapter = registry().model(name)
        variant = next(variant for variant in adapter.variants() if variant.name == adapter.default_variant)
        yield from ((adapter, speed) for speed in variant.speeds)


def vendor_times(adapter: ModelAdapter, quant: QuantMode) -> tuple[float, float]:
    """First token and a further token of the vendor's nets, in seconds, without any time of the host.

    Those nets compute every prompt as 512 tokens, keep the rotary embedding as published, and the output layer in F16.
    """
    config = adapter.variants()[0].config
    padded = Stage(new_tokens=PUBLISHED_TOKENS, cache_length=0)
    decode = Stage(new_tokens=1, cache_length=PUBLISHED_TOKENS)
    scheme = resolve_quant(quant, adapter.half)
    plan = NetPlan(seq_length=PUBLISHED_TOKENS, prefill=(padded, Stage(new_tokens=2, cache_length=PUBLISHED_TOKENS)))
    nets = adapter.slices(config, plan, scheme.activation)
    plain = net_costs(nets, _half(adapter))
    costs = {
        name: plain[name] if nets.net(name).kind is NetKind.LM_HEAD else cost
        for name, cost in net_costs(nets, scheme).items()
    }
    passes = Passes.of(nets, costs, host_s=0.0)
    return passes.time(padded, rows=1).total_s, passes.time(decode, rows=1).total_s


def _half(adapter: ModelAdapter) -> QuantScheme:
    return resolve_quant(QuantMode(adapter.half.value), adapter.half)


def _patched(adapter: ModelAdapter, config: DecoderConfig) -> DecoderConfig:
    return apply_patches(config, model_patches(adapter, config, PUBLISHED_TOKENS, registry()))


def _filled(page: str, name: str, table: str) -> str:
    pattern = rf"(<!-- {name}: written by scripts/estimate_tables.py -->\n).*?(<!-- end -->)"
    put: Callable[[re.Match[str]], str] = lambda found: f"{found[1]}\n{table}\n\n{found[2]}"  # noqa: E731
    text, count = re.subn(pattern, put, page, flags=re.S)
    if count != 1:
        sys.exit(f"{PAGE.name} has no place for the table {name}")
    return text


def main() -> int:
    """Write or compare the tables."""
    fit, worst = fit_table()
    page = PAGE.read_text(encoding="utf-8")
    wanted = _filled(_filled(page, "fit", fit), "published", published_table())
    if worst > WORST_ERROR:
        print(f"the roofline is {worst:.1%} from the compiler: fit core/tpudeploy/estimate/chip.py anew")
        return 1
    if "--check" in sys.argv[1:]:
        if wanted == page:
            return 0
        print(f"{PAGE.name} is not what the code says; run: python scripts/estimate_tables.py")
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    print(fit, published_table(), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
