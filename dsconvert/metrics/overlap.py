"""Precision and recall of a set of images in features (Kynkaanniemi et al. 2019).

The manifold of a set is the union of balls around its features, each of which reaches to the k-th
nearest neighbour within the set (eq. 1). Precision is the share of generated images in the manifold
of the reference, recall the share of the reference in the manifold of the generated images (eq. 2).
A low precision says that images look unlike the reference, a low recall that kinds of images are
missing; a Frechet distance mixes the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsconvert.errors import UsageError
from dsconvert.metrics.frechet import Interval

NEIGHBOURS = 3
"""k of the paper."""
_ROWS = 2048
"""Rows of a distance matrix in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Precision and recall, with 95 % intervals.

    An interval is the bootstrap of the images that are judged, with both manifolds as they are; the
    spread over independent draws includes that of the manifolds.
    """

    precision: float
    recall: float
    precision_interval: Interval
    recall_interval: Interval


def overlap(
    made: Tensor,
    reference: Tensor,
    *,
    neighbours: int = NEIGHBOURS,
    bootstrap: int = 100,
    seed: int = 0,
) -> Overlap:
    """Return precision and recall of the features ``made`` beside ``reference``.

    Args:
        made: ``(N, F)`` features of generated images.
        reference: ``(M, F)``; both numbers depend on N and M.
        neighbours: k.
        bootstrap: resamples of an interval; 0 makes it a point.
        seed: of the resampling.

    Raises:
        UsageError: a set has no k neighbours, or F differs, or a feature is not finite.
    """
    for rows in (made, reference):
        if rows.dim() != 2 or len(rows) <= neighbours:
            raise UsageError(
                f"precision and recall with {neighbours} neighbours need more than {neighbours} "
                f"images on each side, not {len(rows)}; draw more samples."
            )
        if not rows.isfinite().all():
            raise UsageError("the features hold NaN or infinity: the images are broken.")
    if made.shape[1] != reference.shape[1]:
        raise UsageError(
            f"features of different sizes can't be compared: {made.shape[1]} and "
            f"{reference.shape[1]}."
        )
    a, b = made.detach().cpu().double(), reference.detach().cpu().double()
    precise = _covered(a, b, _radii(b, neighbours))
    recalled = _covered(b, a, _radii(a, neighbours))
    rng = np.random.default_rng(seed)
    return Overlap(
        precision=float(precise.mean()),
        recall=float(recalled.mean()),
        precision_interval=_interval(precise, rng, bootstrap),
        recall_interval=_interval(recalled, rng, bootstrap),
    )


def _radii(rows: Tensor, neighbours: int) -> Tensor:
    """Return each row's distance to its k-th nearest neighbour among the others."""
    # The nearest one of all is the row itself.
    parts = [
        torch.cdist(part, rows, compute_mode="donot_use_mm_for_euclid_dist")
        .kthvalue(neighbours + 1, dim=1)
        .values
        for part in rows.split(_ROWS)
    ]
    return torch.cat(parts)


def _covered(rows: Tensor, others: Tensor, radii: Tensor) -> Tensor:
    """Return, as 0 and 1, whether each of ``rows`` lies in the manifold of ``others``."""
    parts = [
        (torch.cdist(part, others, compute_mode="donot_use_mm_for_euclid_dist") <= radii).any(1)
        for part in rows.split(_ROWS)
    ]
    return torch.cat(parts).double()


def _interval(judged: Tensor, rng: np.random.Generator, bootstrap: int) -> Interval:
    values = judged.numpy()
    if not bootstrap:
        return (float(values.mean()), float(values.mean()))
    # The number of covered images in a resample has a binomial distribution.
    shares = rng.binomial(len(values), float(values.mean()), bootstrap) / len(values)
    low, high = np.percentile(shares, [2.5, 97.5])
    return (float(low), float(high))
