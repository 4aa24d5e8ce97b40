"""Correct the losses of fewer channels by trial: the consumers read a prediction in one run.

The loss by sensitivities takes errors at different places as independent. In early maps they are
not: an error there moves whole parts of the picture. So at a few counts a group's removed channels
are really replaced by their prediction, and the rest of the network runs on it.

The error of an image is the mean of the relative errors of its frequency bands (a Laplacian
pyramid, Burt & Adelson 1983). Fine texture has little of an image's variance and much of its looks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert.width.absorb import predicting
from dsconvert.width.choose import Curve
from dsconvert.width.groups import ChannelGroups
from dsconvert.width.sensitivity import outputs_by_sample

_SHARES = (1 / 4, 1 / 2)
"""Shares of a group's channels at which its loss is tried."""
TRIALS = len(_SHARES)
_BANDS = 3
"""Bands above the coarsest one."""
_LIMITS = (0.1, 100.0)
"""The smallest and largest correction; beyond, a trial is an accident of its few samples."""


def calibrated(
    model: nn.Module,
    groups: ChannelGroups,
    curves: Mapping[str, Curve],
    second: Mapping[str, Tensor],
    batches: Sequence[tuple[Any, ...]],
    *,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Curve]:
    """Return the curves, scaled so that they agree with trials.

    Args:
        model: the original in eval mode, norms folded; a copy, which may be run.
        groups: of the model.
        curves: by sensitivities.
        second: second moments of each consumer's input.
        batches: arguments of forward calls.
        seed: of the model's own draws.
        progress: called with (groups done, groups in all, name).
    """
    consumers = {g.name: g.consumers for g in groups.free()}
    with torch.no_grad(), torch.random.fork_rng():
        wanted = [bands(_outputs(model, batch, seed + i)) for i, batch in enumerate(batches)]
        spread = _spread(wanted)
        made: dict[str, Curve] = {}
        for done, (name, curve) in enumerate(curves.items()):
            if progress is not None:
                progress(done, len(curves), name)
            size = len(curve.order)
            points: list[tuple[int, float]] = []
            for count in sorted({max(1, round(size * share)) for share in _SHARES}):
                if count >= size or not curve.loss[count] > 0:
                    continue
                kept = {name: tuple(sorted(curve.order[:count]))}
                with predicting(model, groups, consumers[name], kept, second):
                    real = _trial(model, batches, wanted, spread, seed)
                points.append((count, real / curve.loss[count]))
            made[name] = _scaled(curve, points)
    return made


def _scaled(curve: Curve, points: Sequence[tuple[int, float]]) -> Curve:
    """Return a curve multiplied by factors, interpolated between the counts of the trials."""
    factors = [(k, min(max(f, _LIMITS[0]), _LIMITS[1])) for k, f in points if np.isfinite(f)]
    if not factors:
        return curve
    counts = np.arange(len(curve.loss))
    logs = np.interp(counts, [k for k, _ in factors], [np.log(f) for _, f in factors])
    loss = np.array(curve.loss) * np.exp(logs)
    # More channels are never worse.
    return Curve(curve.order, tuple(np.maximum.accumulate(loss[::-1])[::-1].tolist()))


def bands(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the frequency bands of images (N, C, H, W); other outputs are one band each."""
    found: list[Tensor] = []
    for output in outputs:
        rest = output.float()
        for _ in range(_BANDS):
            if rest.ndim != 4 or min(rest.shape[-2:]) < 16:
                break
            coarse = F.avg_pool2d(rest, 2)
            size = (int(rest.shape[-2]), int(rest.shape[-1]))
            found.append(rest - F.interpolate(coarse, size, mode="bilinear"))
            rest = coarse
        found.append(rest)
    return found


def _outputs(model: nn.Module, batch: tuple[Any, ...], seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    return outputs_by_sample(model, batch)


def _spread(outputs: Sequence[Sequence[Tensor]]) -> list[float]:
    """Return the variance of each band over samples, summed over its elements."""
    found: list[float] = []
    for parts in zip(*outputs, strict=True):
        whole = torch.cat([p.double().reshape(len(p), -1) for p in parts])
        found.append(float((whole - whole.mean(0)).square().sum() / max(1, len(whole) - 1)))
    return found


def _trial(
    model: nn.Module,
    batches: Sequence[tuple[Any, ...]],
    wanted: Sequence[Sequence[Tensor]],
    spread: Sequence[float],
    seed: int,
) -> float:
    """Return the relative error of the output of ``model`` as it is now."""
    total, count = 0.0, 0
    for i, batch in enumerate(batches):
        got = bands(_outputs(model, batch, seed + i))
        errors = [
            float((g - w).double().square().sum()) / max(s, 1e-300)
            for g, w, s in zip(got, wanted[i], spread, strict=True)
        ]
        total, count = total + sum(errors) / len(errors), count + len(got[0])
    return total / count
