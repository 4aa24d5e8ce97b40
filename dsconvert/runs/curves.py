"""Curves as inline SVG: no library, no script, sharp at any size, and text that can be copied."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 10, 34
_LOG_FROM = 20.0
"""A positive curve that spans this factor is drawn on a logarithmic axis."""


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (
                math.log(self.high) - math.log(self.low)
            )
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """A handful of round numbers within the axis."""
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = len(powers)
    digits = (1,) if decades > 3 else (1, 2, 5)
    found = [d * 10.0**p for p in powers for d in digits]
    return [t for t in found if low * 0.999 <= t <= high * 1.001]


def number(value: float, digits: int = 3) -> str:
    """Short, for an axis or a table: a few digits, with k, M or G where it is large."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.{digits}g}{unit}"
    return f"{value:.{digits}g}"


def _tick(value: float) -> str:
    # Neighbouring ticks of a flat curve differ late; steps are 1, 2, 2.5 or 5, so zeros end soon.
    return number(value, 8)


def _axis(values: Sequence[float], *, may_log: bool) -> _Axis:
    low, high = min(values), max(values)
    log = may_log and low > 0 and high / low >= _LOG_FROM
    if high == low:
        margin = abs(low) * 0.1 or 1.0
        return _Axis(low - margin, high + margin, log=False)
    if log:
        return _Axis(low / 1.1, high * 1.1, log=True)
    margin = 0.05 * (high - low)
    # A curve that nearly touches zero is read against zero.
    bottom = 0.0 if 0 <= low < 0.25 * high else low - margin
    return _Axis(bottom, high + margin, log=False)


def finite(points: Points) -> list[tuple[float, float]]:
    """Without the points that have no place on an axis."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def curve(
    title: str, series: Mapping[str, Points], *, x_label: str, floor: float | None = None
) -> str:
    """One chart.

    Args:
        title: what is on the vertical axis.
        series: name to ``(x, y)`` points; those that are not finite are left out. A series of a
            single point is drawn as a dot.
        x_label: what is on the horizontal axis.
        floor: a level to compare with (a noise floor), drawn as a dashed line.

    Returns:
        an ``<svg>`` element, or "" where no series has a point.
    """
    kept = {name: pts for name, pts in ((n, finite(p)) for n, p in series.items()) if pts}
    if not kept:
        return ""
    everything = [p for points in kept.values() for p in points]
    x = _axis([p[0] for p in everything], may_log=False)
    if x.low < 0 <= min(p[0] for p in everything):
        x = _Axis(0.0, x.high, log=False)
    levels = [p[1] for p in everything] + ([floor] if floor is not None else [])
    y = _axis(levels, may_log=True)

    def at(px: float, py: float) -> tuple[float, float]:
        return (
            _LEFT + x.place(px) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - y.place(py) * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    for tick in y.ticks():
        _, py = at(x.low, tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 6}" y="{py + 3.5:.1f}" text-anchor="end">'
            f"{_tick(tick)}</text>"
        )
    for tick in x.ticks():
        px, _ = at(tick, y.low)
        parts.append(
            f'<text class="tick" x="{px:.1f}" y="{_HEIGHT - _BOTTOM + 14}" text-anchor="middle">'
            f"{_tick(tick)}</text>"
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="tick" x="{middle:.0f}" y="{_HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    if floor is not None:
        _, py = at(x.low, floor)
        parts.append(
            f'<line class="floor" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>'
        )
    for index, points in enumerate(kept.values()):
        places = [at(*p) for p in points]
        if len(places) == 1:
            (px, py) = places[0]
            parts.append(f'<circle class="s{index % 6} dot" cx="{px:.1f}" cy="{py:.1f}" r="3"/>')
        else:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
            parts.append(f'<polyline class="s{index % 6}" points="{path}"/>')
    parts.append("</svg>")
    legend = "".join(
        f'<span><i class="s{i % 6}"></i>{escape(name)}</span>'
        for i, name in enumerate(kept)
        if len(kept) > 1 or name != title
    )
    if floor is not None:
        legend += "<span><i class='floor'></i>floor</span>"
    scale = " (log scale)" if y.log else ""
    return (
        f"<figure><figcaption>{escape(title)}{scale}</figcaption>{''.join(parts)}"
        f'<div class="legend">{legend}</div></figure>'
    )
