"""The measured quality of a conversion: FD-lite0 as a multiple of its floor, and the PSNR.

A :class:`Judge` holds the original's images of some latents and their features, so that several
conversions are measured on the same ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from dsconvert.data.pictures import psnr
from dsconvert.errors import UsageError
from dsconvert.metrics.distance import SampleProgress, image_batches
from dsconvert.metrics.features import LiteFeatures
from dsconvert.metrics.frechet import compare_sets
from dsconvert.metrics.networks import extracted
from dsconvert.metrics.pairs import summary
from dsconvert.model.inputs import Inputs
from dsconvert.records import Quality

SAMPLES = 400
"""Images on each side: a Frechet distance and its floor depend on their number."""
SEEDS = {"report": 3_141_592_653, "search": 2_718_281_828, "promise": 1_414_213_562}
"""Of the latents of each use. Fit and polish draw from small seeds (``--seed``), so that no latent
of one use is seen by another."""
BOOTSTRAP = 100
_BATCH = 20
_TRIAL = 4
_KEPT = 512 << 20
"""Bytes of the original's images that are kept; more are made anew for each conversion."""


class Judge:
    """Measures conversions of one original on the same latents.

    Args:
        teacher: the original, which returns images in [-1, 1].
        inputs: sampler of inputs that only judge.
        features: EfficientNet-Lite0; None: the PSNR alone is measured.
        samples: images on each side, 2 or more.
        seed: of the latents; see :data:`SEEDS`.
    """

    def __init__(
        self,
        teacher: nn.Module,
        inputs: Inputs,
        *,
        features: LiteFeatures | None,
        samples: int = SAMPLES,
        seed: int = SEEDS["report"],
    ) -> None:
        self._teacher, self._inputs, self._net = teacher, inputs, features
        self._samples, self._seed = samples, seed
        self._images: list[Tensor] | None = None
        self._features: tuple[Tensor, Tensor] | None = None

    def check(self) -> None:
        """Run the original once.

        Raises:
            UsageError: its output is no image of 1, 3 or 4 channels.
        """
        made = next(iter(self._batches(self._teacher, 1, self._seed, None)))
        if made.shape[1] not in (1, 3, 4) or not made.isfinite().all():
            raise UsageError(
                f"the quality can't be measured: the generator's output {list(made.shape[1:])} is "
                "no image of 1, 3 or 4 channels."
            )

    def expected(self, student: nn.Module) -> float:
        """Return the seconds that a measurement would take, from a few images."""
        seconds: list[float] = []
        for model in (self._teacher, student):
            began = time.perf_counter()
            for images in self._batches(model, _TRIAL, self._seed + 7, None):
                if self._net is not None:
                    self._net(images)
            seconds.append((time.perf_counter() - began) / _TRIAL)
        sets = 1 if self._net is None else 2
        return self._samples * (sets * seconds[0] + seconds[1])

    def measure(self, student: nn.Module, *, progress: SampleProgress | None = None) -> Quality:
        """Measure ``student``, whose images have the original's shape.

        Raises:
            UsageError: the images differ in shape, or are not finite.
        """

        def tell(stage: str, total: int) -> Callable[[int], None]:
            return lambda done: None if progress is None else progress(stage, done, total)

        began = time.perf_counter()
        n, seed = self._samples, self._seed
        values: list[Tensor] = []
        mine: list[Tensor] = []
        ours: list[Tensor] = []
        wanted = self._originals(tell("quality, original", n))
        made = self._batches(student, n, seed, tell("quality", n))
        for image, original in zip(made, wanted, strict=True):
            values.append(psnr(image, original))
            if self._net is not None:
                mine.append(extracted(self._net, image))
                if self._features is None:
                    ours.append(extracted(self._net, original))
        nothing = torch.empty(0, device="cpu")
        near = summary("psnr", torch.cat(values), nothing, bootstrap=BOOTSTRAP, seed=seed)
        fd = floor = ratio = interval = None
        if self._net is not None:
            if self._features is None:
                other = self._batches(self._teacher, n, seed + 1, tell("quality, noise floor", n))
                net = self._net
                self._features = torch.cat(ours), torch.cat([extracted(net, o) for o in other])
            found = compare_sets(
                torch.cat(mine), *self._features, bootstrap=BOOTSTRAP, seed=seed,
                progress=tell("quality, interval", BOOTSTRAP),
            )  # fmt: skip
            fd, floor, interval = found.value, found.floor, found.ratio_interval
            ratio = fd / floor if floor > 0 else None
        return Quality(
            samples=n,
            psnr=near.mean,
            psnr_interval=near.interval,
            fd=fd,
            floor=floor,
            ratio=ratio,
            ratio_interval=interval,
            seconds=time.perf_counter() - began,
        )

    def _batches(
        self, model: nn.Module, samples: int, seed: int, progress: Callable[[int], None] | None
    ) -> Iterator[Tensor]:
        return image_batches(
            model, self._inputs, samples=samples, seed=seed, batch=_BATCH, progress=progress
        )

    def _originals(self, progress: Callable[[int], None]) -> Iterator[Tensor]:
        """Yield the original's images, kept after the first time if they are few."""
        if self._images is not None:
            yield from self._images
            return
        kept: list[Tensor] = []
        size = 0
        for images in self._batches(self._teacher, self._samples, self._seed, progress):
            size += images.nbytes
            if size <= _KEPT:
                kept.append(images)
            yield images
        if size <= _KEPT:
            self._images = kept
