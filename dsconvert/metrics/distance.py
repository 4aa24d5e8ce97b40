"""Feature distance (FD-lite0): the Frechet distance of two sets of features. Never called FID.

``FD = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))`` (Heusel et al. 2017, eq. 6, in other
features). With N samples fewer than dimensions the covariances are singular; the trace of the root
is then still exact from the N x N cross product of the centred features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsconvert.errors import UsageError
from dsconvert.metrics.features import LiteFeatures
from dsconvert.trace import evaluating

Inputs = Callable[[int, torch.Generator], tuple[Any, ...]]
Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``, in images and in bootstrap resamples."""
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two Frechet distances to one set of features, their difference, and 95 % intervals.

    The intervals are the spread of a bootstrap around the full-sample estimate: see
    :func:`compare_sets`.
    """

    value: float
    floor: float
    value_interval: Interval
    floor_interval: Interval
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class FeatureDistance:
    """A generator's distance to its teacher beside the teacher's distance to itself.

    ``value`` is FD(student, teacher) and ``floor`` FD(teacher, teacher), with independent latents
    and ``samples`` images on each side; each has a bootstrap interval (95 %) of its own. ``excess``
    is their difference, and ``interval`` its interval, from both distances on the same resampled
    latents (narrower than either, since most of the sampling noise is shared); ``distinguishable``
    says whether that lies above zero. ``same_latents`` is FD(student, teacher) where both saw the
    same latents and noise; ``psnr`` is in dB, of the mean squared error of all those pairs.
    """

    samples: int
    value: float
    floor: float
    value_interval: Interval
    floor_interval: Interval
    excess: float
    interval: Interval
    same_latents: float
    psnr: float

    @property
    def ratio(self) -> float:
        """``value / floor``."""
        return self.value / self.floor if self.floor > 0 else float("inf")

    @property
    def distinguishable(self) -> bool:
        """Whether the student can be told from the teacher at this sample count."""
        return self.interval[0] > 0


_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


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
    """The Frechet distance where row i of ``x`` occurs ``times_x[i]`` times; so for ``y``."""
    # Rows that a resample left out cost nothing: the SVD of 0.63 N rows takes a quarter of the
    # time of one of N rows with repetitions.
    x, times_x = x[times_x > 0], times_x[times_x > 0]
    y, times_y = y[times_y > 0], times_y[times_y > 0]
    count_x, count_y = times_x.sum(), times_y.sum()
    mean_x, mean_y = times_x @ x / count_x, times_y @ y / count_y
    left = (x - mean_x) * np.sqrt(times_x / (count_x - 1))[:, None]
    right = (y - mean_y) * np.sqrt(times_y / (count_y - 1))[:, None]
    # tr (C_a C_b)^(1/2) is the sum of the singular values of left @ right.T.
    root = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    shift = np.square(mean_x - mean_y).sum()
    return float(shift + np.square(left).sum() + np.square(right).sum() - 2 * root)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The Frechet distance of features ``(N, F)`` and ``(M, F)``.

    Raises:
        UsageError: fewer than two samples, different F, or features that are not finite.
    """
    x, y = _array(a), _array(b)
    _same_width(x, y)
    return _weighted(x, np.ones(len(x)), y, np.ones(len(y)))


def _same_width(*sets: _Array) -> None:
    widths = {s.shape[1] for s in sets}
    if len(widths) > 1:
        raise UsageError(f"features of different sizes can't be compared: {sorted(widths)}.")


@torch.no_grad()
def sample_images(
    model: nn.Module,
    inputs: Inputs,
    *,
    samples: int,
    seed: int,
    batch: int = 25,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """``samples`` images ``(N, C, H, W)`` in [-1, 1] on the CPU.

    Latents and the model's own noise both follow from ``seed`` (and ``batch``: two models that are
    to see the same draws need the same one). The model runs in eval mode and is left as it was, the
    global random state too.

    Args:
        model: a generator.
        inputs: ``inputs(n, generator)`` returns the positional arguments of a call with batch n;
            tensors are moved to the model's device and floating ones to its dtype.
        samples: how many images.
        seed: of latents and noise.
        batch: images a call.
        progress: called with the number of images made so far.
    """
    if samples < 1 or batch < 1:
        raise UsageError(f"samples ({samples}) and batch ({batch}) must be 1 or more.")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(seed)
    images: list[Tensor] = []
    with evaluating(model):
        torch.manual_seed(seed)
        for start in range(0, samples, batch):
            args = inputs(min(batch, samples - start), generator)
            made = model(*(_like(a, like) for a in args))
            images.append(made.float().clamp(-1, 1).cpu())
            if progress is not None:
                progress(start + len(made))
    return torch.cat(images)


def _like(value: Any, like: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)


def compare_sets(
    student: Tensor,
    teacher: Tensor,
    other: Tensor,
    *,
    bootstrap: int = 100,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """FD(student, other) beside FD(teacher, other), with bootstrap intervals.

    A Frechet distance of resampled features is biased upwards (repeated rows are fewer samples), by
    an amount that depends on the distance. Two things keep that out of the verdict. The resamples
    are paired: student and teacher share latents, so each resample takes the same rows of both
    (and the same rows of ``other``), and the shared part of bias and noise cancels in the
    difference. And each interval is centred: it is the full-sample estimate plus the resamples'
    deviations from *their* mean, so that what bias is left moves no interval. (In simulations with
    N < F the intervals come out about 1.4 times too wide, never too narrow: a student called
    distinguishable is.)

    Args:
        student: ``(N, F)`` features of the student's images.
        teacher: ``(N, F)``, same latents as ``student``, row by row.
        other: ``(M, F)`` features of the teacher's images of other latents.
        bootstrap: resamples; 0 makes every interval a point.
        seed: of the resampling.
        progress: called with the number of resamples done.

    Raises:
        UsageError: the sets do not fit each other.
    """
    s, t, o = _array(student), _array(teacher), _array(other)
    _same_width(s, t, o)
    if len(s) != len(t):
        raise UsageError(
            f"student and teacher share latents, so their counts must too: {len(s)} and {len(t)}."
        )
    ones, others = np.ones(len(s)), np.ones(len(o))
    value, floor = _weighted(s, ones, o, others), _weighted(t, ones, o, others)
    rng = np.random.default_rng(seed)
    draws: list[tuple[float, float]] = []
    while len(draws) < bootstrap:
        rows, columns = _times(rng, len(s)), _times(rng, len(o))
        draws.append((_weighted(s, rows, o, columns), _weighted(t, rows, o, columns)))
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
    )


def _times(rng: np.random.Generator, count: int) -> _Array:
    """How often each of ``count`` rows is drawn in one resample with replacement."""
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
    """Value, floor and the interval of their difference: the short form of :func:`compare_sets`."""
    found = compare_sets(student, teacher, other, bootstrap=bootstrap, seed=seed)
    return found.value, found.floor, found.interval


def feature_distance(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Inputs,
    *,
    samples: int = 400,
    seed: int = 1,
    bootstrap: int = 100,
    batch: int = 25,
    features: LiteFeatures | None = None,
    progress: Progress | None = None,
) -> FeatureDistance:
    """Measure how far ``student``'s images are from ``teacher``'s.

    Args:
        student: a converted generator.
        teacher: the original.
        inputs: sampler of inputs, ``inputs(n, generator)``.
        samples: images on each side.
        seed: student and teacher share the latents of ``seed``; ``seed + 1`` makes the
            teacher's independent images.
        bootstrap: resamples for the intervals.
        batch: images a call.
        features: to reuse a loaded network.
        progress: see :data:`Progress`.

    Raises:
        MissingExtraError: timm or the weights are not installed.
        UsageError: the generators' images differ in size, or are not finite.
    """
    net = features or LiteFeatures()

    def draw(model: nn.Module, stage: str, seed: int) -> Tensor:
        report = None if progress is None else lambda n: progress(stage, n, samples)
        return sample_images(
            model, inputs, samples=samples, seed=seed, batch=batch, progress=report
        )

    mine = draw(student, "student", seed)
    ours = draw(teacher, "teacher", seed)
    if mine.shape != ours.shape:
        raise UsageError(
            f"the student's images are {list(mine.shape[1:])}, the teacher's "
            f"{list(ours.shape[1:])}: they can't be compared."
        )
    error = (mine - ours).square().mean()
    f_student, f_teacher = net(mine), net(ours)
    f_other = net(draw(teacher, "teacher, other latents", seed + 1))
    found = compare_sets(
        f_student,
        f_teacher,
        f_other,
        bootstrap=bootstrap,
        seed=seed,
        progress=None if progress is None else lambda n: progress("bootstrap", n, bootstrap),
    )
    return FeatureDistance(
        samples=samples,
        value=found.value,
        floor=found.floor,
        value_interval=found.value_interval,
        floor_interval=found.floor_interval,
        excess=found.value - found.floor,
        interval=found.interval,
        same_latents=frechet_distance(f_student, f_teacher),
        psnr=float(10 * torch.log10(4 / error.clamp_min(1e-12))),
    )
