"""Stacked bars as inline SVG. Widths are shares of the page, so that text stays readable on a narrow screen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_ROW, _BAR, _AXIS = 52, 22, 28
_MOST_TICKS = 5
_LEAST_MS = 1e-6
"""A cycle: an axis has a length even where nothing takes time."""


@dataclass(frozen=True)
class Bar:
    """One bar.

    :param parts: (class, name, milliseconds), in order.
    :param limit_ms: where to draw the mark of the limit; None for none.
    """

    label: str
    parts: Sequence[tuple[str, str, float]]
    limit_ms: float | None = None

    @property
    def total_ms(self) -> float:
        """Length of the bar."""
        return sum(ms for _, _, ms in self.parts)


def draw_bars(bars: Sequence[Bar], *, what: str) -> str:
    """An ``<svg>`` of bars on one axis of time.

    :param what: what they show, for people who do not see it.
    """
    longest = max([_LEAST_MS, *(bar.total_ms for bar in bars), *(bar.limit_ms or 0.0 for bar in bars)])
    step = _step(longest)
    end = step * math.ceil(longest / step)
    height = _ROW * len(bars)
    lines = [f'<svg role="img" aria-label="{escape(what)}" width="100%" height="{height + _AXIS}">']
    lines += _axis(end, step, height)
    for row, bar in enumerate(bars):
        lines += _bar(bar, row * _ROW, end)
    return "\n".join([*lines, "</svg>"])


def _bar(bar: Bar, top: int, end: float) -> Iterator[str]:
    yield f'<text x="0" y="{top + 18}">{escape(bar.label)}</text>'
    start = 0.0
    for kind, name, ms in bar.parts:
        if ms > 0:
            title = f"<title>{escape(name)}: {ms:.2f} ms</title>"
            place = f'x="{_share(start, end)}" y="{top + 25}" width="{_share(ms, end)}" height="{_BAR}"'
            yield f'<rect class="{kind}" {place}>{title}</rect>'
        start += ms
    if bar.limit_ms is not None:
        x = _share(bar.limit_ms, end)
        title = f"<title>the limit of the bandwidth: {bar.limit_ms:.2f} ms</title>"
        yield f'<line class="limit" x1="{x}" x2="{x}" y1="{top + 23}" y2="{top + 29 + _BAR}">{title}</line>'


def _axis(end: float, step: float, height: int) -> Iterator[str]:
    ticks = round(end / step)
    unit, name = (1000, "s") if end >= 1000 else (1, "ms")
    for tick in range(ticks + 1):
        x = _share(tick * step, end)
        anchor = "start" if tick == 0 else "end" if tick == ticks else "middle"
        text = f"{tick * step / unit:g}" if tick else f"0 {name}"
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{height + 6}"/>'
        yield f'<text class="tick" x="{x}" y="{height + 22}" text-anchor="{anchor}">{text}</text>'


def _share(ms: float, end: float) -> str:
    return f"{100 * ms / end:.3f}%"


def _step(longest: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten of which a few reach ``longest``."""
    power: float = 10.0 ** math.floor(math.log10(longest / _MOST_TICKS))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor * _MOST_TICKS >= longest)
