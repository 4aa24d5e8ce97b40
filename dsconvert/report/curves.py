"""Curves on logarithmic axes as an SVG picture, which browsers show and papers include."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 520, 380, 64, 40, 48
_LEGEND, _LINE = 190, 15
_COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f",
    "#bcbd22", "#17becf",
)  # fmt: skip
_DASHES = ("", "6 3", "2 3", "8 3 2 3")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A named line; ``points`` are (x, y), both above 0."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot with its axes."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]


def curves_svg(panels: Sequence[Panel]) -> str:
    """Return the panels side by side, each with its own legend, as an SVG document."""
    rows = max((len(p.curves) for p in panels), default=0)
    height = max(_HEIGHT, _TOP + _LINE * rows + 20)
    whole = (_WIDTH + _LEGEND) * max(1, len(panels))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="{height}" '
        f'viewBox="0 0 {whole} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{whole}" height="{height}" fill="white"/>',
    ]
    for i, panel in enumerate(panels):
        parts.append(f'<g transform="translate({i * (_WIDTH + _LEGEND)} 0)">')
        parts += _panel(panel)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel) -> list[str]:
    points = [p for c in panel.curves for p in c.points if p[0] > 0 and p[1] > 0]
    parts = [f'<text x="{_LEFT}" y="20" font-size="14">{escape(panel.title)}</text>']
    if not points:
        return [*parts, f'<text x="{_LEFT}" y="60">nothing was tried</text>']
    x = _Axis.over([p[0] for p in points], _LEFT, _WIDTH - 10)
    y = _Axis.over([p[1] for p in points], _HEIGHT - _BOTTOM, _TOP)
    for value in x.ticks():
        at = x.at(value)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" '
            f'stroke="#ddd"/><text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 14}" '
            f'text-anchor="middle">{value:g}</text>'
        )
    for value in y.ticks():
        at = y.at(value)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 12}" text-anchor="middle">'
        f"{escape(panel.x)}</text>"
        f'<text transform="translate(16 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(panel.y)}</text>"
    )
    for i, curve in enumerate(panel.curves):
        colour = _COLOURS[i % len(_COLOURS)]
        look = (
            f'fill="none" stroke="{colour}" stroke-width="1.6" '
            f'stroke-dasharray="{_DASHES[i // len(_COLOURS) % len(_DASHES)]}"'
        )
        line = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in curve.points if a > 0 and b > 0)
        top = _TOP + i * _LINE
        parts.append(
            f'<polyline {look} points="{line}"><title>{escape(curve.name)}</title></polyline>'
            f'<line {look} x1="{_WIDTH + 4}" x2="{_WIDTH + 26}" y1="{top}" y2="{top}"/>'
            f'<text x="{_WIDTH + 30}" y="{top + 4}">{escape(curve.name)}</text>'
        )
        parts += [
            f'<circle cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="2.2" fill="{colour}"/>'
            for a, b in curve.points
            if a > 0 and b > 0
        ]
    return parts


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis from ``low`` to ``high``, drawn from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = math.log10(min(values)), math.log10(max(values))
        room = max(0.05 * (high - low), 0.05)
        return cls(low - room, high + room, start, end)

    def at(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return 1, 2 and 5 times powers of ten; powers alone over more than three decades."""
        steps = (1, 2, 5) if self.high - self.low < 3 else (1,)
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        found = [s * 10.0**p for p in powers for s in steps]
        return [v for v in found if self.low <= math.log10(v) <= self.high]
