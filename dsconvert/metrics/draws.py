"""Figures over several independent draws of latents: their mean and its 95 % interval.

A bootstrap resamples one set of images. Independent draws also vary the set itself (and with it the
manifolds of precision and recall), so their spread is the whole sampling noise.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dsconvert.metrics.evaluate import Evaluation
from dsconvert.metrics.frechet import Interval

_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's t at 97.5 % for 1 to 30 degrees of freedom."""
_NORMAL = 1.96


@dataclass(frozen=True, kw_only=True)
class OverDraws:
    """One figure over all draws.

    Attributes:
        metric: its name; that of a second network is ``fd-backbone`` or ``pr-backbone``.
        what: as in :class:`dsconvert.metrics.evaluate.Score`.
        quantity: ``value``, ``floor``, ``ratio``, ``precision``, ``recall``, their floors, or the
            ``mean`` of pairs.
        values: of each draw.
        mean: of these.
        interval: of the mean, 95 %, by Student's t; a point where there is one draw.
    """

    metric: str
    what: str
    quantity: str
    values: tuple[float, ...]
    mean: float
    interval: Interval


def over_draws(found: Sequence[Evaluation]) -> tuple[OverDraws, ...]:
    """Return every figure of the evaluations, which are of the same models, over the draws."""
    rows: dict[tuple[str, str, str], list[float]] = {}

    def add(metric: str, what: str, **figures: float) -> None:
        for quantity, value in figures.items():
            rows.setdefault((metric, what, quantity), []).append(value)

    for one in found:
        for s in one.scores:
            c = s.comparison
            # KID may be 0 or below: no multiple of a floor means anything there.
            ratio = {} if s.metric == "kid" else {"ratio": s.ratio}
            add(s.metric, s.what, value=c.value, floor=c.floor, **ratio)
        for o in one.overlaps:
            add(
                o.metric, o.what, precision=o.found.precision, recall=o.found.recall,
                floor_precision=o.floor.precision, floor_recall=o.floor.recall,
            )  # fmt: skip
        for p in one.pairs:
            add(p.metric, "to teacher", mean=p.mean)
    return tuple(
        OverDraws(
            metric=metric,
            what=what,
            quantity=quantity,
            values=tuple(values),
            mean=statistics.fmean(values),
            interval=interval(values),
        )
        for (metric, what, quantity), values in rows.items()
    )


def interval(values: Sequence[float]) -> Interval:
    """Return the 95 % interval of the mean of independent values, by Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return (mean, mean)
    freedom = len(values) - 1
    factor = _QUANTILES[freedom - 1] if freedom <= len(_QUANTILES) else _NORMAL
    half = factor * statistics.stdev(values) / len(values) ** 0.5
    return (mean - half, mean + half)
