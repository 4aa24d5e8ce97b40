"""Charts: curves placed on axes, ready for ``templates/chart.html.j2`` to draw as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dsconvert.runs.html import render_macro
from dsconvert.util.numbers import compact_number

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 10, 34
_COLOURS = 6
_LOG_FROM = 20.0
"""A positive curve that spans this factor gets a logarithmic axis."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A labelled place on an axis, in the units of the SVG."""

    place: str
    text_place: str
    text: str


@dataclass(frozen=True, kw_only=True)
class ChartSeries:
    """One curve: a polyline, or a dot where there is a single point; ``label`` may be empty."""

    label: str
    colour: int
    points: str
    dot: tuple[str, str] | None


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart whose coordinates are those of its SVG."""

    title: str
    x_label: str
    log: bool
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[ChartSeries, ...]
    floor: str | None
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _WIDTH - _RIGHT
    bottom: int = _HEIGHT - _BOTTOM


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool

    def place(self, value: float) -> float:
        """Return 0 for the low end of the axis and 1 for the high end."""
        if self.log:
            return (math.log(value) - math.log(self.low)) / (
                math.log(self.high) - math.log(self.low)
            )
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return a few round numbers within the axis."""
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high)


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1,) if len(powers) > 3 else (1, 2, 5)
    found = [d * 10.0**p for p in powers for d in digits]
    return [t for t in found if low * 0.999 <= t <= high * 1.001]


def _tick_text(value: float) -> str:
    # Neighbouring ticks of a flat curve differ in a late digit only. Steps are 1, 2, 2.5 or 5, so
    # no tick has a long tail of digits.
    return compact_number(value, 8)


def _axis(values: Sequence[float], *, may_log: bool) -> _Axis:
    low, high = min(values), max(values)
    log = may_log and low > 0 and high / low >= _LOG_FROM
    if high == low:
        margin = abs(low) * 0.1 or 1.0
        return _Axis(low - margin, high + margin, log=False)
    if log:
        return _Axis(low / 1.1, high * 1.1, log=True)
    margin = 0.05 * (high - low)
    # The axis of a curve that nearly touches zero begins there.
    bottom = 0.0 if 0 <= low < 0.25 * high else low - margin
    return _Axis(bottom, high + margin, log=False)


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def place_curves(
    title: str, series: Mapping[str, Points], *, x_label: str, floor: float | None = None
) -> Chart | None:
    """Place curves on axes.

    Args:
        title: the quantity on the vertical axis.
        series: name to ``(x, y)`` points; points that are not finite are left out.
        x_label: the quantity on the horizontal axis.
        floor: a level to compare with (a noise floor), drawn as a dashed line.

    Returns:
        the chart; None where no series has a point.
    """
    kept = {name: pts for name, pts in ((n, _finite(p)) for n, p in series.items()) if pts}
    if not kept:
        return None
    everything = [p for points in kept.values() for p in points]
    x = _axis([p[0] for p in everything], may_log=False)
    if x.low < 0 <= min(p[0] for p in everything):
        x = _Axis(0.0, x.high, log=False)
    levels = [p[1] for p in everything] + ([floor] if floor is not None else [])
    y = _axis(levels, may_log=True)

    def across(value: float) -> str:
        return f"{_LEFT + x.place(value) * (_WIDTH - _LEFT - _RIGHT):.1f}"

    def down(value: float, shift: float = 0.0) -> str:
        return f"{_HEIGHT - _BOTTOM - y.place(value) * (_HEIGHT - _TOP - _BOTTOM) + shift:.1f}"

    def placed(index: int, name: str, points: Points) -> ChartSeries:
        places = [(across(px), down(py)) for px, py in points]
        return ChartSeries(
            label=name if len(kept) > 1 or name != title else "",
            colour=index % _COLOURS,
            points=" ".join(f"{px},{py}" for px, py in places),
            dot=places[0] if len(places) == 1 else None,
        )

    return Chart(
        title=title,
        x_label=x_label,
        log=y.log,
        x_ticks=tuple(
            Tick(place=across(t), text_place=across(t), text=_tick_text(t)) for t in x.ticks()
        ),
        y_ticks=tuple(
            Tick(place=down(t), text_place=down(t, 3.5), text=_tick_text(t)) for t in y.ticks()
        ),
        series=tuple(placed(i, name, pts) for i, (name, pts) in enumerate(kept.items())),
        floor=None if floor is None else down(floor),
    )


def curve(
    title: str, series: Mapping[str, Points], *, x_label: str, floor: float | None = None
) -> str:
    """Draw one chart: see :func:`place_curves` for the arguments.

    Returns:
        a ``<figure>`` with an ``<svg>`` in it, or "" where no series has a point.
    """
    chart = place_curves(title, series, x_label=x_label, floor=floor)
    return "" if chart is None else render_macro("chart", "figure", chart)
