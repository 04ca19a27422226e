"""An estimate as one HTML page: where the time goes. No script, and nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from tpudeploy.estimate.bars import Bar, draw_bars
from tpudeploy.estimate.passes import Times
from tpudeploy.estimate.report import Estimate

PARTS = (
    ("embedding", "embedding", "embedding_s"),
    ("layers", "layers", "layers_s"),
    ("head", "output layer", "lm_head_s"),
    ("exchanges", "exchanges between chips", "exchanges_s"),
    ("host", "host", "host_s"),
)
"""CSS class, name for people, field of :class:`~tpudeploy.estimate.passes.Times`."""

_STYLE = """\
:root { color-scheme: light dark; --page: #ffffff; --text: #1b1f24; --faint: #57606a; --grid: #d0d7de;
  --embedding: #8250df; --layers: #1f6feb; --head: #d29922; --exchanges: #cf222e; --host: #6e7781; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0d1117; --text: #e6edf3; --faint: #9198a1; --grid: #30363d;
    --embedding: #a371f7; --layers: #4493f8; --head: #d29922; --exchanges: #f85149; --host: #9198a1; } }
body { background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; max-width: 56rem;
  margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } p, figcaption { color: var(--faint); }
figure { margin: 0; } svg { display: block; overflow: visible; font: 14px system-ui, sans-serif; }
svg text { fill: var(--text); paint-order: stroke; stroke: var(--page); stroke-width: 4px; }
svg .tick { fill: var(--faint); font-size: 12px; }
svg .grid { stroke: var(--grid); } svg .limit { stroke: var(--text); stroke-width: 2; stroke-dasharray: 4 3; }
.embedding { fill: var(--embedding); } .layers { fill: var(--layers); } .head { fill: var(--head); }
.exchanges { fill: var(--exchanges); } .host { fill: var(--host); }
ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; }
li svg { display: inline-block; vertical-align: -1px; margin-right: .4rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; overflow-wrap: normal; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
"""


def draw_chart(estimate: Estimate) -> str:
    """The page."""
    chips = f", {estimate.chips} chips ({estimate.split})" if estimate.chips > 1 else ""
    title = f"{estimate.title} in {estimate.quant}, {estimate.seq_length} tokens{chips}"
    source = f"the {estimate.source.value} of {estimate.compiler}" if estimate.compiler else "the roofline"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>Modelled time on BM1684X, from {escape(source)}. {escape(_sentence(estimate.note))}</p>",
        _legend(estimate),
        "<h2>First token</h2>",
        _figure(_first_tokens(estimate), "time to the first token, by length of the prompt"),
        "<h2>Each further token</h2>",
        _figure(
            _passes(estimate),
            "time of one token, by length of the conversation, and of passes that check drafted tokens",
            caption="The dashed line is the limit of the bandwidth: what has to be read, at the memory's full rate.",
        ),
        "<h2>Nets</h2>",
        _nets(estimate),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    page = "\n".join(body)
    start = f'<!doctype html>\n<html lang="en"><head>{head}\n<style>\n{_STYLE}</style></head>'
    return f"{start}<body>\n{page}\n</body></html>\n"


def _first_tokens(estimate: Estimate) -> list[Bar]:
    return [
        Bar(f"prompt of {prompt.prompt_tokens}: {prompt.first_token_s:.3f} s", _parts(prompt.times))
        for prompt in estimate.prompts
    ]


def _passes(estimate: Estimate) -> list[Bar]:
    tokens = [
        Bar(
            f"context of {token.context_tokens}: {token.token_s * 1e3:.1f} ms, {token.tokens_per_s:.2f} tokens/s",
            _parts(token.times),
            limit_ms=1e3 / token.limit_tokens_per_s,
        )
        for token in estimate.contexts
    ]
    checks = [
        Bar(f"check of {check.drafted_tokens} drafts: {check.pass_s * 1e3:.1f} ms", _parts(check.times))
        for check in estimate.speculation
    ]
    return tokens + checks


def _parts(times: Times) -> list[tuple[str, str, float]]:
    return [(kind, name, getattr(times, field) * 1e3) for kind, name, field in PARTS]


def _figure(bars: Sequence[Bar], what: str, *, caption: str = "") -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{draw_bars(bars, what=what)}{below}</figure>"


def _legend(estimate: Estimate) -> str:
    every = [prompt.times for prompt in estimate.prompts]
    every += [token.times for token in estimate.contexts]
    every += [check.times for check in estimate.speculation]
    shown = [part for part in PARTS if any(getattr(times, part[2]) > 0 for times in every)]
    mark = '<svg width="12" height="12" aria-hidden="true"><rect class="{}" width="12" height="12"/></svg>'
    return "<ul>" + "".join(f"<li>{mark.format(kind)}{escape(name)}</li>" for kind, name, _ in shown) + "</ul>"


def _nets(estimate: Estimate) -> str:
    columns = ("net", "new x cache", "how many", "each, ms", "DMA, ms", "arithmetic, ms", "moved, MB", "from")
    rows = [
        (
            net.net,
            net.stage,
            str(net.count),
            f"{net.seconds * 1e3:.3f}",
            f"{net.dma_s * 1e3:.3f}",
            f"{net.arithmetic_s * 1e3:.3f}",
            f"{net.moved_bytes / 1e6:.1f}",
            net.source.value,
        )
        for net in estimate.nets
    ]
    return f'<div class="wide"><table>{_row("th", columns)}{"".join(_row("td", row) for row in rows)}</table></div>'


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(_cells(tag, cells)) + "</tr>\n"


def _cells(tag: str, cells: Sequence[str]) -> Iterator[str]:
    return (f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
