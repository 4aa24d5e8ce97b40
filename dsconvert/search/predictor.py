"""Predict the loss of a whole plan: the sum of the losses of its layers and groups by themselves.

Losses between the tried steps are interpolated (their logarithm is linear in the step); a step
without loss has 0. Errors of different layers are taken as independent.

A whole plan is fitted layer by layer, each on what the narrower, rewritten layers before it make.
So later layers undo most of what the error of an earlier one would do to the image by itself, and
the layer's own error says more about a fitted plan. What a narrower map lost is not there any more:
its effect on the image stays (benchmarks/predictor.py).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

from dsconvert.records import Plan
from dsconvert.search.trial_rig import LayerTrials, Sensitivity

_LEAST = 1e-12
_NARROWER = 4.0
"""What the effect of a narrower map counts beside the error of a layer: the best of 0.5, 1, 2, 4
and 8 on 40 plans of a 64 px generator, which are none of those in the benchmark's table."""

Figure = Literal["error", "image", "features"]
"""The figure of a :class:`~dsconvert.search.trial_rig.Trial`."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """The predicted losses of a plan before any polish.

    Attributes:
        image: squared error of the image, as a share of the images' variance.
        features: the same of the pooled features; that of the image where they were not measured.
        fitted: errors of rewritten layers and effects of narrower maps, which rank plans that are
            fitted; no unit.
        psnr: in dB, of the image's loss.
    """

    image: float
    features: float
    fitted: float
    psnr: float


def predict_loss(plan: Plan, known: Sensitivity) -> Predicted:
    """Return the predicted losses of ``plan``; layers that were not tried count as without loss."""
    ranks = {t.name: t for t in known.layers if t.kind == "rank"}
    widths = {t.name: t for t in known.layers if t.kind == "width"}
    steps = [
        (ranks[d.site], d.rank)
        for d in plan.decisions
        if d.action == "rewrite" and d.rank is not None and d.site in ranks
        and not _exact(d.rule)
    ]  # fmt: skip
    steps += [(widths[w.group], w.kept) for w in plan.widths if w.group in widths]
    image = sum(loss_at(t, step, "image") for t, step in steps)
    fitted = sum(
        _NARROWER * loss_at(t, step, "image") if t.kind == "width" else loss_at(t, step, "error")
        for t, step in steps
    )
    return Predicted(
        image=image,
        features=sum(loss_at(t, step, "features") for t, step in steps),
        fitted=fitted,
        psnr=10 * math.log10(4 / max(image * known.power, 1e-12)),
    )


def loss_at(trials: LayerTrials, step: int, figure: Figure) -> float:
    """Return a loss of one layer or group at a rank or number of channels.

    Where ``figure`` was not measured, it is the loss of the image.
    """
    if step >= trials.whole or not trials.trials:
        return 0.0
    values = [(t.step, getattr(t, figure), t.image) for t in trials.trials]
    points = [(step, image if value is None else value) for step, value, image in values]
    points = sorted((s, max(v, _LEAST)) for s, v in points)
    # More is never worse; an accident of few latents must not say so.
    least = points[-1][1]
    falling: list[tuple[int, float]] = []
    for s, v in reversed(points):
        least = max(least, v)
        falling.insert(0, (s, least))
    if step <= falling[0][0]:
        return falling[0][1] * (falling[0][0] / max(1, step)) ** 2
    for (a, low), (b, high) in itertools.pairwise(falling):
        if a <= step <= b:
            share = (step - a) / (b - a)
            return math.exp((1 - share) * math.log(low) + share * math.log(high))
    # Beyond the largest tried step the loss falls to 0 at the step without loss.
    last, value = falling[-1]
    return value * (trials.whole - step) / (trials.whole - last)


def _exact(rule: str | None) -> bool:
    return rule == "up-merge"
