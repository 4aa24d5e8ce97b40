"""Feature distance (FD-lite0): the Frechet distance of two generators' images.

It is not a FID, whose features are Inception's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsconvert.errors import UsageError
from dsconvert.metrics.features import LiteFeatures
from dsconvert.metrics.frechet import Interval, compare_sets, frechet_distance
from dsconvert.metrics.networks import extracted
from dsconvert.model.inputs import Inputs, checked, device_of, like
from dsconvert.model.observe import evaluating
from dsconvert.model.parts import images_in_parts, random_state, set_random_state
from dsconvert.util.progress import reports_progress

SampleProgress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``, in images or in bootstrap resamples."""


@dataclass(frozen=True, kw_only=True)
class FeatureDistance:
    """A generator's distance to its teacher beside the teacher's distance to itself.

    ``value`` is FD(student, teacher) and ``floor`` FD(teacher, teacher), with independent latents
    and ``samples`` images on each side; each has a bootstrap interval (95 %) of its own. ``excess``
    is their difference, and ``interval`` its interval, from both distances on the same resampled
    latents (narrower than either, since most of the sampling noise is shared); ``distinguishable``
    says whether that lies above zero. ``same_latents`` is FD(student, teacher) for the same latents
    and noise; ``psnr`` is in dB, of the mean squared error of all those pairs.
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
        """Whether the student differs from the teacher beyond chance, at this sample count."""
        return self.interval[0] > 0


def sample_images(
    model: nn.Module,
    inputs: Inputs,
    *,
    samples: int,
    seed: int,
    batch: int = 25,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Make ``samples`` images ``(N, C, H, W)`` in [-1, 1] on the CPU.

    Latents and the model's own noise follow from ``seed`` and ``batch``: two models get the same
    draws if both are the same. The model runs in eval mode; it does not change, nor does the global
    random state.

    Args:
        model: a generator.
        inputs: ``inputs(n, generator)`` returns the positional arguments of a call with batch n;
            tensors are moved to the model's device and floating ones to its dtype.
        samples: number of images.
        seed: of latents and noise.
        batch: images in a call.
        progress: called with the number of images made so far.
    """
    return torch.cat(
        list(
            image_batches(model, inputs, samples=samples, seed=seed, batch=batch, progress=progress)
        )
    )


def image_batches(
    model: nn.Module,
    inputs: Inputs,
    *,
    samples: int,
    seed: int,
    batch: int = 25,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Tensor]:
    """Yield the images of :func:`sample_images` in batches, for sets larger than the memory."""
    if samples < 1 or batch < 1:
        raise UsageError(f"samples ({samples}) and batch ({batch}) must be 1 or more.")
    device, inputs = device_of(model), checked(inputs)
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model):
        torch.manual_seed(seed)
        state = random_state(device)
    for start in range(0, samples, batch):
        # The noise continues from the last batch, whatever the caller draws in between.
        with evaluating(model):
            set_random_state(device, state)
            count = min(batch, samples - start)
            args = like(inputs(count, generator), model)
            made = images_in_parts(model, args, batch=count).float().clamp(-1, 1).cpu()
            state = random_state(device)
        if progress is not None:
            progress(start + len(made))
        yield made


@reports_progress
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
    progress: SampleProgress | None = None,
) -> FeatureDistance:
    """Measure the distance of ``student``'s images to ``teacher``'s.

    Args:
        student: a converted generator.
        teacher: the original.
        inputs: ``inputs(n, generator)`` returns the arguments of a call with batch n.
        samples: images on each side.
        seed: student and teacher share the latents of ``seed``; ``seed + 1`` makes the
            teacher's independent images.
        bootstrap: resamples for the intervals.
        batch: images in a call.
        features: a loaded network; None: load it.
        progress: see :data:`SampleProgress`.

    Raises:
        MissingExtraError: timm or the weights are not installed.
        UsageError: the generators' images differ in size, or are not finite.
    """
    net = features or LiteFeatures()

    def tell(stage: str, total: int) -> Callable[[int], None]:
        return lambda done: None if progress is None else progress(stage, done, total)

    def draw(model: nn.Module, stage: str, seed: int) -> Tensor:
        return sample_images(
            model, inputs, samples=samples, seed=seed, batch=batch, progress=tell(stage, samples)
        )

    mine = draw(student, "student", seed)
    ours = draw(teacher, "teacher", seed)
    if mine.shape != ours.shape:
        raise UsageError(
            f"the student's images are {list(mine.shape[1:])}, the teacher's "
            f"{list(ours.shape[1:])}: they can't be compared."
        )
    error = (mine - ours).square().mean()
    f_student, f_teacher = extracted(net, mine), extracted(net, ours)
    f_other = extracted(net, draw(teacher, "teacher, other latents", seed + 1))
    found = compare_sets(
        f_student,
        f_teacher,
        f_other,
        bootstrap=bootstrap,
        seed=seed,
        progress=tell("bootstrap", bootstrap),
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
