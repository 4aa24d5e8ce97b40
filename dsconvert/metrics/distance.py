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

from dsconvert.metrics.features import LiteFeatures

Inputs = Callable[[int, torch.Generator], tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class FeatureDistance:
    """A generator's distance to its teacher beside the teacher's distance to itself.

    ``value`` is FD(student, teacher) and ``floor`` FD(teacher, teacher), with independent latents
    and ``samples`` images on each side. ``excess`` is their difference with its bootstrap interval
    (95 %, both distances recomputed on the same resampled latents); ``distinguishable`` says
    whether the interval lies above zero. ``same_latents`` is FD(student, teacher) where both saw
    the same latents and noise.
    """

    samples: int
    value: float
    floor: float
    excess: float
    interval: tuple[float, float]
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


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The Frechet distance of features ``(N, F)`` and ``(M, F)``."""
    x, y = a.double().numpy(), b.double().numpy()
    mean_x, mean_y = x.mean(0), y.mean(0)
    left = (x - mean_x) / np.sqrt(max(1, len(x) - 1))
    right = (y - mean_y) / np.sqrt(max(1, len(y) - 1))
    # tr (C_a C_b)^(1/2) is the sum of the singular values of left @ right.T.
    root = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    shift = np.square(mean_x - mean_y).sum()
    return float(shift + np.square(left).sum() + np.square(right).sum() - 2 * root)


@torch.no_grad()
def sample_images(
    model: nn.Module, inputs: Inputs, *, samples: int, seed: int, batch: int = 25
) -> Tensor:
    """``samples`` images; latents and the model's own noise both follow from ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    was = model.training
    model.eval()
    images: list[Tensor] = []
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for start in range(0, samples, batch):
                args = inputs(min(batch, samples - start), generator)
                images.append(model(*args).float().clamp(-1, 1).cpu())
    finally:
        model.train(was)
    return torch.cat(images)


def compare_features(
    student: Tensor, teacher: Tensor, other: Tensor, *, bootstrap: int = 100, seed: int = 0
) -> tuple[float, float, tuple[float, float]]:
    """Value, floor and the bootstrap interval of their difference.

    Resampling with replacement biases a Frechet distance upwards, but both by the same amount: the
    student and the teacher share latents, so each resample takes the same rows of both.
    """
    value, floor = frechet_distance(student, other), frechet_distance(teacher, other)
    rng = np.random.default_rng(seed)
    count = len(student)
    differences: list[float] = []
    for _ in range(bootstrap):
        rows = torch.from_numpy(rng.integers(0, count, count))
        others = torch.from_numpy(rng.integers(0, len(other), len(other)))
        b = other[others]
        differences.append(frechet_distance(student[rows], b) - frechet_distance(teacher[rows], b))
    low, high = np.percentile(differences, [2.5, 97.5]) if differences else (0.0, 0.0)
    return value, floor, (float(low), float(high))


def feature_distance(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Inputs,
    *,
    samples: int = 400,
    seed: int = 1,
    bootstrap: int = 100,
    features: LiteFeatures | None = None,
) -> FeatureDistance:
    """Measure how far ``student``'s images are from ``teacher``'s.

    Args:
        student: a converted generator.
        teacher: the original.
        inputs: sampler of inputs, ``inputs(n, generator)``.
        samples: images on each side.
        seed: student and teacher share the latents of ``seed``; ``seed + 1`` makes the
            teacher's independent images.
        bootstrap: resamples for the interval.
        features: to reuse a loaded network.
    """
    net = features or LiteFeatures()
    mine = sample_images(student, inputs, samples=samples, seed=seed)
    ours = sample_images(teacher, inputs, samples=samples, seed=seed)
    error = (mine - ours).square().mean()
    f_student, f_teacher = net(mine), net(ours)
    f_other = net(sample_images(teacher, inputs, samples=samples, seed=seed + 1))
    value, floor, interval = compare_features(
        f_student, f_teacher, f_other, bootstrap=bootstrap, seed=seed
    )
    return FeatureDistance(
        samples=samples,
        value=value,
        floor=floor,
        excess=value - floor,
        interval=interval,
        same_latents=frechet_distance(f_student, f_teacher),
        psnr=float(10 * torch.log10(4 / error.clamp_min(1e-12))),
    )
