"""Distances of a generator's images to real images, to those of its original, or both.

Every distance has the same number of images on both sides and a noise floor, the same distance
between two sets of one kind: half of the real images against the other half, or the original
against itself with other latents. An interval says whether the two differ beyond chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from dsconvert.config.choices import Metric
from dsconvert.errors import UsageError
from dsconvert.metrics.distance import SampleProgress, image_batches
from dsconvert.metrics.frechet import Comparison, compare_sets, frechet
from dsconvert.metrics.kernel import check_rows, kernel
from dsconvert.metrics.networks import (
    NAMES,
    Extractor,
    extractors,
    features_of,
    is_distance,
    is_overlap,
    network,
)
from dsconvert.metrics.overlap import Overlap, overlap
from dsconvert.metrics.pairs import PairedSets, Pairs
from dsconvert.model.inputs import Inputs
from dsconvert.util.progress import reports_progress

__all__ = [
    "FEW", "NAMES", "Contest", "Evaluation", "Extractor", "OverlapScore", "Score", "evaluate",
    "extractors", "features_of",
]  # fmt: skip

FEW = 2000
"""With fewer real images, a FID depends more on their number than on the generator."""
What = Literal["student", "teacher", "to teacher"]
"""``student`` or ``teacher`` (to real images), or the student's images to the teacher's."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One distance, ``comparison.value``, and its noise floor, ``comparison.floor``.

    ``what`` is ``student`` or ``teacher`` (to real images), or ``to teacher``; ``samples`` are the
    images on each side.
    """

    metric: Metric
    what: What
    samples: int
    comparison: Comparison

    @property
    def distinguishable(self) -> bool:
        """Whether the 95 % interval of the excess over the floor lies above zero."""
        return self.comparison.interval[0] > 0

    @property
    def ratio(self) -> float:
        """The distance as a multiple of its floor."""
        c = self.comparison
        return c.value / c.floor if c.floor > 0 else float("inf")


@dataclass(frozen=True, kw_only=True)
class OverlapScore:
    """Precision and recall (``found``), and those of the noise floor (``floor``)."""

    metric: Metric
    what: What
    samples: int
    found: Overlap
    floor: Overlap


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
    overlaps: tuple[OverlapScore, ...] = ()
    pairs: tuple[Pairs, ...] = ()
    """To the original, latent by latent; none without an original."""


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
        UsageError: there is neither ``teacher`` nor ``real``, the sets do not fit each other, or
            ``samples`` are too many for KID.
    """
    if "kid" in metrics:
        check_rows(samples)
    if teacher is None and "pd-lite0" in metrics:
        raise UsageError("pd-lite0 is a distance to the original; name one (--against).")
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

    pairs: tuple[Pairs, ...] = ()
    ours: dict[str, Tensor] | None = None
    if teacher is None:
        mine = made(student, "student", seed)
    else:
        both = (
            image_batches(model, inputs, samples=samples, seed=seed, batch=batch, progress=done)
            for model, done in (
                (student, tell("student", samples)), (teacher, tell("teacher", samples))
            )
        )  # fmt: skip
        drawn = PairedSets(nets, perceptual="pd-lite0" in metrics)
        drawn.take(zip(*both, strict=True))
        mine, ours = drawn.features
        pairs = drawn.summaries(bootstrap=bootstrap, seed=seed)
    scores: list[Score] = []
    overlaps: list[OverlapScore] = []
    contests: list[Contest] = []
    notes: list[str] = []

    def compare(metric: Metric, a: Tensor, b: Tensor, o: Tensor, *, paired: bool) -> Comparison:
        distance = kernel if metric == "kid" else frechet
        return compare_sets(
            a, b, o, bootstrap=bootstrap, seed=seed, paired=paired, distance=distance,
            progress=tell(f"bootstrap of {NAMES[metric]}", bootstrap),
        )  # fmt: skip

    def score(what: What, a: Tensor, b: Tensor, o: Tensor, metric: Metric) -> None:
        if is_overlap(metric):
            found, floor = (overlap(x, o, bootstrap=bootstrap, seed=seed) for x in (a, b))
            overlaps.append(
                OverlapScore(metric=metric, what=what, samples=samples, found=found, floor=floor)
            )
        elif is_distance(metric):
            found = compare(metric, a, b, o, paired=what == "to teacher")
            scores.append(Score(metric=metric, what=what, samples=samples, comparison=found))

    if real is not None:
        reference, other = (_counted(features_of(r, nets), samples) for r in real)
        for metric in metrics:
            n = network(metric)
            score("student", mine[n], other[n], reference[n], metric)
            if ours is None:
                continue
            score("teacher", ours[n], other[n], reference[n], metric)
            if is_distance(metric):
                found = compare(metric, mine[n], ours[n], reference[n], paired=True)
                contests.append(Contest(metric=metric, samples=samples, comparison=found))
    if teacher is not None and ours is not None and any(m != "pd-lite0" for m in metrics):
        again = made(teacher, "teacher, other latents", seed + 1)
        for metric in metrics:
            n = network(metric)
            score("to teacher", mine[n], ours[n], again[n], metric)
    if any(is_distance(m) and m != "kid" for m in metrics) and samples < FEW:
        notes.append(
            f"{samples} images a side: Frechet distances grow as sets shrink (Chong & Forsyth "
            "2020); they compare with others of this count only, and never with published figures"
        )
    return Evaluation(
        scores=tuple(scores),
        contests=tuple(contests),
        warnings=tuple(notes),
        overlaps=tuple(overlaps),
        pairs=pairs,
    )


def _counted(features: dict[str, Tensor], samples: int) -> dict[str, Tensor]:
    for rows in features.values():
        if len(rows) != samples:
            raise UsageError(f"{len(rows)} real images were given where {samples} were announced.")
    return features
