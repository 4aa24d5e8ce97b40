"""Distances of a generator's images to real images, to those of its original, or both.

Every distance has the same number of images on both sides and a noise floor, the same distance
between two sets of one kind: half of the real images against the other half, or the original
against itself with other latents. An interval says whether the two differ beyond chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from dsconvert.data.pictures import to_bytes
from dsconvert.errors import UsageError
from dsconvert.metrics.distance import SampleProgress, image_batches
from dsconvert.metrics.features import LiteFeatures
from dsconvert.metrics.frechet import Comparison, compare_sets, frechet
from dsconvert.metrics.inception import InceptionFeatures
from dsconvert.metrics.kernel import kernel
from dsconvert.model.inputs import Inputs
from dsconvert.util.progress import reports_progress

Metric = Literal["fid", "kid", "fd-lite0"]
METRICS: tuple[Metric, ...] = ("fid", "kid", "fd-lite0")
NAMES: dict[Metric, str] = {"fid": "FID", "kid": "KID", "fd-lite0": "FD-lite0"}
"""Names in reports."""
FEW = 2000
"""With fewer real images, a FID depends more on their number than on the generator."""


class Extractor(Protocol):
    """Images ``(N, C, H, W)`` in [-1, 1] to features ``(N, F)``."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features."""
        ...


@dataclass(frozen=True, kw_only=True)
class Score:
    """One distance, ``comparison.value``, and its noise floor, ``comparison.floor``.

    ``what`` is ``student`` or ``teacher`` (to real images), or ``to teacher``; ``samples`` are the
    images on each side.
    """

    metric: Metric
    what: Literal["student", "teacher", "to teacher"]
    samples: int
    comparison: Comparison

    @property
    def distinguishable(self) -> bool:
        """Whether the 95 % interval of the excess over the floor lies above zero."""
        return self.comparison.interval[0] > 0


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The distances of student and teacher to the real images, on the same latents.

    ``comparison.value`` is the student's, ``comparison.floor`` the teacher's; the interval is that
    of the difference.
    """

    metric: Metric
    samples: int
    comparison: Comparison

    @property
    def distinguishable(self) -> bool:
        """Whether the 95 % interval of the difference excludes zero."""
        low, high = self.comparison.interval
        return low > 0 or high < 0


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All scores, and warnings about them."""

    scores: tuple[Score, ...]
    contests: tuple[Contest, ...]
    warnings: tuple[str, ...]


def extractors(
    metrics: Sequence[Metric], *, device: torch.device | str = "cpu"
) -> dict[str, Extractor]:
    """Load the networks that the metrics need; fail early if one is missing.

    Raises:
        UsageError: a metric is unknown, or there is none.
        MissingExtraError: a package or weights are missing.
    """
    unknown = [m for m in metrics if m not in METRICS]
    if unknown or not metrics:
        raise UsageError(
            f"there is no metric {', '.join(unknown) or ''}; choose from {', '.join(METRICS)}."
        )
    found: dict[str, Extractor] = {}
    if "fid" in metrics or "kid" in metrics:
        found["inception"] = InceptionFeatures(device)
    if "fd-lite0" in metrics:
        found["lite0"] = LiteFeatures(device)
    return found


def _network(metric: Metric) -> str:
    return "lite0" if metric == "fd-lite0" else "inception"


def features_of(batches: Iterable[Tensor], nets: Mapping[str, Extractor]) -> dict[str, Tensor]:
    """Compute the features of batches of images with each network, after rounding to 8 bit.

    Real images have 256 levels, so generated ones must have no more.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in nets}
    for images in batches:
        levels = to_bytes(images).float() / 127.5 - 1
        for name, net in nets.items():
            parts[name].append(net(levels).cpu())
    return {name: torch.cat(rows) for name, rows in parts.items()}


@reports_progress
def evaluate(
    student: nn.Module,
    inputs: Inputs,
    *,
    nets: Mapping[str, Extractor],
    metrics: Sequence[Metric],
    teacher: nn.Module | None = None,
    real: tuple[Iterable[Tensor], Iterable[Tensor]] | None = None,
    samples: int = 1000,
    seed: int = 1,
    bootstrap: int = 100,
    batch: int = 25,
    progress: SampleProgress | None = None,
) -> Evaluation:
    """Measure ``student``.

    Args:
        student: a generator.
        inputs: ``inputs(n, generator)`` returns the arguments of a call of student and teacher.
        nets: from :func:`extractors`.
        metrics: names of the distances.
        teacher: the original.
        real: two disjoint sets of ``samples`` real images each, as batches in [-1, 1]: one to
            measure against, one for the floor.
        samples: images on each side of every distance.
        seed: of the latents (``seed + 1`` for the teacher's other ones) and of the bootstrap.
        bootstrap: resamples behind the intervals; 0 makes them points.
        batch: images in a call.
        progress: see :data:`dsconvert.metrics.distance.SampleProgress`.

    Raises:
        UsageError: there is neither ``teacher`` nor ``real``, or the sets do not fit each other.
    """
    if teacher is None and real is None:
        raise UsageError(
            "nothing to measure against: give real images (--data), an original (--against), or "
            "both."
        )

    def tell(stage: str, total: int) -> Callable[[int], None]:
        return lambda done: None if progress is None else progress(stage, done, total)

    def made(model: nn.Module, stage: str, seed: int) -> dict[str, Tensor]:
        found = image_batches(
            model, inputs, samples=samples, seed=seed, batch=batch, progress=tell(stage, samples)
        )
        return features_of(found, nets)

    mine = made(student, "student", seed)
    ours = None if teacher is None else made(teacher, "teacher", seed)
    scores: list[Score] = []
    contests: list[Contest] = []
    notes: list[str] = []

    def compare(metric: Metric, a: Tensor, b: Tensor, o: Tensor, *, paired: bool) -> Comparison:
        distance = kernel if metric == "kid" else frechet
        return compare_sets(
            a, b, o, bootstrap=bootstrap, seed=seed, paired=paired, distance=distance,
            progress=tell(f"bootstrap of {NAMES[metric]}", bootstrap),
        )  # fmt: skip

    if real is not None:
        reference, other = (_counted(features_of(r, nets), samples) for r in real)
        for metric in metrics:
            n = _network(metric)
            scores.append(
                Score(
                    metric=metric, what="student", samples=samples,
                    comparison=compare(metric, mine[n], other[n], reference[n], paired=False),
                )
            )  # fmt: skip
            if ours is None:
                continue
            scores.append(
                Score(
                    metric=metric, what="teacher", samples=samples,
                    comparison=compare(metric, ours[n], other[n], reference[n], paired=False),
                )
            )  # fmt: skip
            contests.append(
                Contest(
                    metric=metric, samples=samples,
                    comparison=compare(metric, mine[n], ours[n], reference[n], paired=True),
                )
            )  # fmt: skip
    if teacher is not None and ours is not None:
        again = made(teacher, "teacher, other latents", seed + 1)
        for metric in metrics:
            n = _network(metric)
            scores.append(
                Score(
                    metric=metric, what="to teacher", samples=samples,
                    comparison=compare(metric, mine[n], ours[n], again[n], paired=True),
                )
            )  # fmt: skip
    if any(m != "kid" for m in metrics) and samples < FEW:
        notes.append(
            f"{samples} images a side: Frechet distances grow as sets shrink (Chong & Forsyth "
            "2020); they compare with others of this count only, and never with published figures"
        )
    return Evaluation(scores=tuple(scores), contests=tuple(contests), warnings=tuple(notes))


def _counted(features: dict[str, Tensor], samples: int) -> dict[str, Tensor]:
    for rows in features.values():
        if len(rows) != samples:
            raise UsageError(f"{len(rows)} real images were given where {samples} were announced.")
    return features
