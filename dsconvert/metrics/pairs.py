"""Distances of each image to the original's image of the same latent and noise.

PD-lite0 compares feature maps as LPIPS does (Zhang et al. 2018, eq. 1): at each of four stages of
EfficientNet-Lite0 the channels of every pixel are normalised to length 1, and the squared
differences are summed over channels and averaged over pixels, then over stages. All channels have
the weight 1. It is no LPIPS, whose networks differ and whose weights were fitted to judgements of
people: values compare with each other only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from dsconvert.data.pictures import psnr
from dsconvert.errors import UsageError
from dsconvert.metrics.frechet import Interval
from dsconvert.metrics.networks import Extractor, extracted

PairMetric = Literal["psnr", "pd-lite0"]
_TINY = 1e-10


class FeatureMaps(Protocol):
    """Images ``(N, C, H, W)`` in [-1, 1] to maps ``(N, F, h, w)``, one for each stage."""

    def maps(self, images: Tensor) -> Sequence[Tensor]:
        """Return the maps."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A distance of images to those of the original, latent by latent.

    Attributes:
        metric: ``psnr`` (dB, higher is nearer) or ``pd-lite0`` (0: equal, lower is nearer).
        samples: number of latents.
        mean: over latents.
        interval: of the mean, 95 %, by a bootstrap over latents.
        median: over latents.
        worst: of all latents.
        unrelated: the mean over pairs of the original's images of different latents, as a scale.
    """

    metric: PairMetric
    samples: int
    mean: float
    interval: Interval
    median: float
    worst: float
    unrelated: float


@torch.no_grad()
def perceptual(made: Tensor, wanted: Tensor, net: FeatureMaps) -> Tensor:
    """Return PD-lite0 (N,) of images ``(N, C, H, W)`` in [-1, 1], pair by pair."""
    return from_maps(net.maps(made), net.maps(wanted))


def from_maps(made: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return the distance (N,) of feature maps, pair by pair; each stage is in [0, 4]."""
    stages = [
        (_unit(a) - _unit(b)).square().sum(1).mean((1, 2)).cpu()
        for a, b in zip(made, wanted, strict=True)
    ]
    return torch.stack(stages).mean(0)


def _unit(maps: Tensor) -> Tensor:
    return maps / (maps.square().sum(1, keepdim=True).sqrt() + _TINY)


def summary(
    metric: PairMetric,
    values: Tensor,
    unrelated: Tensor,
    *,
    bootstrap: int = 100,
    seed: int = 0,
) -> Pairs:
    """Return the summary of one value a latent.

    Args:
        metric: of the values.
        values: (N,), of pairs of the same latent.
        unrelated: of pairs of different latents.
        bootstrap: resamples of the interval; 0 makes it a point.
        seed: of the resampling.
    """
    rows = values.double().numpy()
    rng = np.random.default_rng(seed)
    means = [float(rng.choice(rows, len(rows)).mean()) for _ in range(bootstrap)]
    mean = float(rows.mean())
    low, high = np.percentile(means, [2.5, 97.5]) if means else (mean, mean)
    return Pairs(
        metric=metric,
        samples=len(rows),
        mean=mean,
        interval=(float(low), float(high)),
        median=float(np.median(rows)),
        worst=float(rows.min() if metric == "psnr" else rows.max()),
        unrelated=float(unrelated.double().mean()) if len(unrelated) else float("nan"),
    )


class PairedSets:
    """Collects features and pair distances of two generators that run in step."""

    def __init__(self, nets: Mapping[str, Extractor], *, perceptual: bool) -> None:
        self._nets = nets
        # The protocol of a network with maps is checked where it is first used.
        self._maps = cast("FeatureMaps", nets["lite0"]) if perceptual else None
        self._parts: tuple[dict[str, list[Tensor]], ...] = tuple(
            {n: [] for n in nets} for _ in "ab"
        )
        self._near: dict[str, list[Tensor]] = {"psnr": [], "pd-lite0": []}
        self._far: dict[str, list[Tensor]] = {"psnr": [], "pd-lite0": []}

    def take(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Take all batches (student's images, teacher's images)."""
        for made, wanted in batches:
            if made.shape != wanted.shape:
                raise UsageError(
                    f"the student's images are {list(made.shape[1:])}, the teacher's "
                    f"{list(wanted.shape[1:])}: they can't be compared."
                )
            for parts, images in zip(self._parts, (made, wanted), strict=True):
                for name, net in self._nets.items():
                    parts[name].append(extracted(net, images))
            # Each image of the original, and that of the next latent.
            others = wanted.roll(1, 0)
            self._near["psnr"].append(psnr(made, wanted))
            self._far["psnr"].append(psnr(others, wanted)[: len(wanted) - 1])
            if self._maps is not None:
                a, b = self._maps.maps(made), self._maps.maps(wanted)
                self._near["pd-lite0"].append(from_maps(a, b))
                far = from_maps([m.roll(1, 0) for m in b], b)
                self._far["pd-lite0"].append(far[: len(wanted) - 1])

    @property
    def features(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The features of the student's and of the teacher's images, by network."""
        mine, ours = ({n: torch.cat(rows) for n, rows in p.items()} for p in self._parts)
        return mine, ours

    def summaries(self, *, bootstrap: int, seed: int) -> tuple[Pairs, ...]:
        """Return the summary of each distance."""
        return tuple(
            summary(
                metric, torch.cat(self._near[metric]), torch.cat(self._far[metric]),
                bootstrap=bootstrap, seed=seed,
            )
            for metric in ("psnr", "pd-lite0")
            if self._near[metric]
        )  # fmt: skip
