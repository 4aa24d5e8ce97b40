"""The Frechet distance of two sets of features, with confidence intervals.

``FD = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`` (Heusel et al. 2017, eq. 6, in other
features). With fewer samples N than dimensions the covariances are singular; the trace of the root
is still exact if it is computed from the N x N cross product of the centred features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dsconvert.errors import UsageError

Interval = tuple[float, float]
_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Weighted = Callable[[_Array, _Array], float]
"""The distance of two sets, given the number of times that each row occurs in a resample."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two Frechet distances to one set of features, their difference and ratio, and 95 % intervals.

    The intervals are the spread of a bootstrap around the full-sample estimate: see
    :func:`compare_sets`.
    """

    value: float
    floor: float
    value_interval: Interval
    floor_interval: Interval
    interval: Interval
    """Of the difference."""
    ratio_interval: Interval
    """Of ``value / floor``; not finite where the floor may be 0."""


def _array(features: Tensor) -> _Array:
    if features.dim() != 2 or len(features) < 2:
        raise UsageError(
            f"features are (N, F) with N of 2 or more, not {list(features.shape)}; "
            "draw more samples."
        )
    if not features.isfinite().all():
        raise UsageError("the features hold NaN or infinity: the generator's images are broken.")
    return features.detach().cpu().double().numpy()


def _weighted(x: _Array, times_x: _Array, y: _Array, times_y: _Array) -> float:
    """Return the Frechet distance if row i of ``x`` occurs ``times_x[i]`` times; so for ``y``."""
    # Leave out the rows that a resample lacks: the SVD of 0.63 N rows takes a quarter of the time
    # of one of N rows with repetitions.
    x, times_x = x[times_x > 0], times_x[times_x > 0]
    y, times_y = y[times_y > 0], times_y[times_y > 0]
    count_x, count_y = times_x.sum(), times_y.sum()
    mean_x, mean_y = times_x @ x / count_x, times_y @ y / count_y
    left = (x - mean_x) * np.sqrt(times_x / (count_x - 1))[:, None]
    right = (y - mean_y) * np.sqrt(times_y / (count_y - 1))[:, None]
    shift, spread = np.square(mean_x - mean_y).sum(), np.square(left).sum() + np.square(right).sum()
    # More rows than columns add nothing to the root: A = Q R has the singular values of R.
    left, right = _at_most_square(left), _at_most_square(right)
    # tr (C_a C_b)^(1/2) is the sum of the singular values of left @ right.T.
    root = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    return float(shift + spread - 2 * root)


def _at_most_square(rows: _Array) -> _Array:
    return np.asarray(np.linalg.qr(rows, mode="r")) if len(rows) > rows.shape[1] else rows


def frechet(x: _Array, y: _Array) -> Weighted:
    """Return the Frechet distance of two sets as a function of each row's number of occurrences."""
    return lambda times_x, times_y: _weighted(x, times_x, y, times_y)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the Frechet distance of features ``(N, F)`` and ``(M, F)``.

    Raises:
        UsageError: a set has fewer than two samples, F differs, or features are not finite.
    """
    x, y = _array(a), _array(b)
    _same_width(x, y)
    return _weighted(x, np.ones(len(x)), y, np.ones(len(y)))


def _same_width(*sets: _Array) -> None:
    widths = {s.shape[1] for s in sets}
    if len(widths) > 1:
        raise UsageError(f"features of different sizes can't be compared: {sorted(widths)}.")


def compare_sets(
    student: Tensor,
    teacher: Tensor,
    other: Tensor,
    *,
    bootstrap: int = 100,
    seed: int = 0,
    paired: bool = True,
    distance: Callable[[_Array, _Array], Weighted] = frechet,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Compute FD(student, other) and FD(teacher, other), with bootstrap intervals.

    A Frechet distance of resampled features is biased upwards (repeated rows are fewer samples), by
    an amount that depends on the distance. Two measures remove the bias from the comparison. First,
    the resamples are paired: student and teacher share latents, so each resample takes the same
    rows of both (and the same rows of ``other``), and the common part of bias and noise cancels in
    the difference. Second, each interval is centred: it is the full-sample estimate plus the
    resamples' deviations from *their* mean, so that the remaining bias moves no interval. In
    simulations with fewer samples than features, the intervals are about 1.4 times as wide as the
    sampling requires, so "distinguishable" is a conservative statement.

    Args:
        student: ``(N, F)`` features of the student's images.
        teacher: ``(N, F)``, same latents as ``student``, row by row.
        other: ``(M, F)`` features of the teacher's images of other latents.
        bootstrap: number of resamples; 0 makes every interval a point.
        seed: of the resampling.
        paired: whether row i of ``student`` and row i of ``teacher`` belong together (one latent);
            if not, each set is resampled by itself.
        distance: of two sets; the Frechet distance, or :func:`dsconvert.metrics.kernel.kernel`.
        progress: called with the number of resamples done.

    Raises:
        UsageError: the sets differ in width, or paired sets in length.
    """
    s, t, o = _array(student), _array(teacher), _array(other)
    _same_width(s, t, o)
    if paired and len(s) != len(t):
        raise UsageError(
            f"student and teacher share latents, so their counts must too: {len(s)} and {len(t)}."
        )
    of_student, of_teacher, others = distance(s, o), distance(t, o), np.ones(len(o))
    value, floor = of_student(np.ones(len(s)), others), of_teacher(np.ones(len(t)), others)
    rng = np.random.default_rng(seed)
    draws: list[tuple[float, float]] = []
    while len(draws) < bootstrap:
        rows, columns = _times(rng, len(s)), _times(rng, len(o))
        mates = rows if paired else _times(rng, len(t))
        draws.append((of_student(rows, columns), of_teacher(mates, columns)))
        if progress is not None:
            progress(len(draws))
    values = np.asarray([v for v, _ in draws])
    floors = np.asarray([f for _, f in draws])
    return Comparison(
        value=value,
        floor=floor,
        value_interval=_centred(value, values),
        floor_interval=_centred(floor, floors),
        interval=_centred(value - floor, values - floors),
        ratio_interval=_ratio(value, floor, values, floors),
    )


def _ratio(value: float, floor: float, values: _Array, floors: _Array) -> Interval:
    if floor <= 0 or (len(floors) and floors.min() <= 0):
        return (float("nan"), float("nan"))
    return _centred(value / floor, values / floors)


def _times(rng: np.random.Generator, count: int) -> _Array:
    """Return the number of draws of each of ``count`` rows in one resample with replacement."""
    while True:
        times = np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
        if np.count_nonzero(times) > 1:  # one row alone has no covariance
            return times


def _centred(estimate: float, draws: _Array) -> Interval:
    if not len(draws):
        return (estimate, estimate)
    low, high = np.percentile(draws - draws.mean(), [2.5, 97.5])
    return (estimate + float(low), estimate + float(high))


def compare_features(
    student: Tensor, teacher: Tensor, other: Tensor, *, bootstrap: int = 100, seed: int = 0
) -> tuple[float, float, Interval]:
    """Return value, floor and the interval of their difference; see :func:`compare_sets`."""
    found = compare_sets(student, teacher, other, bootstrap=bootstrap, seed=seed)
    return found.value, found.floor, found.interval
