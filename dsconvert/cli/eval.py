"""``eval``: how good a file's images are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from dsconvert.cli.files import opened
from dsconvert.cli.output import Bars, emit, say
from dsconvert.cli.parser import Call
from dsconvert.config.measure import EvalJob
from dsconvert.data.classes import classes_of, open_labelled, with_classes_of
from dsconvert.data.images import ImageSet
from dsconvert.data.stream import to_range
from dsconvert.errors import UsageError
from dsconvert.formats.alike import check_same_inputs
from dsconvert.metrics.distance import Inputs, sample_images
from dsconvert.metrics.evaluate import FEW, NAMES, Contest, Evaluation, Score, evaluate, extractors
from dsconvert.metrics.frechet import Comparison
from dsconvert.model.inputs import RandomPixels, held_out_inputs, needs_pictures
from dsconvert.report.layout import compact
from dsconvert.util.devices import for_work
from dsconvert.util.numbers import counted

_BATCH = 25
_DEFAULT = 1000


def _halves(images: ImageSet, samples: int, seed: int) -> tuple[Iterator[Tensor], Iterator[Tensor]]:
    """Two disjoint random sets of ``samples`` images, in batches."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()

    def batches(indices: list[int]) -> Iterator[Tensor]:
        for start in range(0, len(indices), _BATCH):
            found = [images.image(i)[0] for i in indices[start : start + _BATCH]]
            yield to_range(torch.stack(found), torch.device("cpu"))

    return batches(order[:samples]), batches(order[samples : 2 * samples])


def run(call: Call) -> None:
    """Measure, and give the verdict."""
    options: EvalJob = call.options
    # If Inception cannot be downloaded, the command fails here, not after minutes of sampling.
    device = for_work(options.device)
    nets = extractors(options.metrics, device=device)
    file = opened(options.snapshot, options)
    if file.sounds() is not None:
        raise UsageError(
            f"the generator of {options.snapshot} makes sounds, and eval measures pictures; "
            "compare measures the STFT distance of two vocoders."
        )
    student, inputs = file.picture().to(device), file.inputs()
    if inputs is None:
        raise UsageError(
            f"{options.snapshot} can't be run: nothing says what its inputs look like; give "
            "--input 256."
        )
    if isinstance(inputs, RandomPixels):
        raise UsageError(f"{needs_pictures(f'the generator of {options.snapshot}', inputs)}.")
    inputs = held_out_inputs(inputs)
    teacher: nn.Module | None = None
    if options.against:
        original = opened(options.against, options)
        check_same_inputs(file, original, otherwise="they can't be compared")
        teacher = original.picture().to(device)
    channels, side = _image(student, inputs)
    if teacher is not None and (channels, side) != _image(teacher, inputs):
        raise UsageError(
            f"the images of {options.snapshot} and {options.against} differ in size: they can't be "
            "compared."
        )
    notes: list[str] = []
    samples = options.samples or _DEFAULT
    images: ImageSet | None = None
    classes, why = classes_of(inputs), "no data set was given that says how often each occurs"
    with Bars(hidden=options.quiet) as bars:
        if options.data:
            images, why = open_labelled(
                options.data,
                classes=classes,
                resolution=side,
                channels=channels,
                progress=bars,
            )
            samples, notes = _count(images, options.samples, notes)
        if classes and images is not None and why is None:
            inputs = with_classes_of(inputs, images)
            notes.append(f"classes are drawn as often as {options.data} has them (dataset.json)")
        elif classes:
            notes.append(f"classes are drawn uniformly: {why}")
        found = evaluate(
            student,
            inputs,
            nets=nets,
            metrics=options.metrics,
            teacher=teacher,
            real=None if images is None else _halves(images, samples, options.seed),
            samples=samples,
            seed=options.seed,
            bootstrap=options.bootstrap,
            progress=bars,
        )
    notes += found.warnings
    if options.json:
        emit(_data(options, found, notes))
        return
    verdicts = _verdicts(found)
    if options.quiet:
        say(*verdicts)
        return
    title = f"{options.snapshot}, {found.scores[0].samples} images a side"
    say(title, *verdicts, "", _table(found), "", *(f"note: {n}." for n in notes))


def _image(model: nn.Module, inputs: Inputs) -> tuple[int, int]:
    """Channels and side of a generator's images."""
    made = sample_images(model, inputs, samples=1, seed=0)
    return made.shape[1], made.shape[2]


def _count(images: ImageSet, wanted: int | None, notes: list[str]) -> tuple[int, list[str]]:
    half = len(images) // 2
    if half < 2:
        raise UsageError(
            f"{images.path} holds {len(images)} images; a distance and its floor need 4 or more."
        )
    samples = min(wanted or _DEFAULT, half)
    if wanted is not None and wanted > half:
        notes = [
            *notes,
            f"{half} images a side, not {wanted}: the {len(images)} real ones are halved, one half "
            "to measure against and one for the floor",
        ]
    if len(images) < FEW:
        notes = [
            *notes,
            f"only {len(images)} real images: with fewer than {FEW} a FID is biased upwards and "
            "mostly measures their number; KID is unbiased, if noisy",
        ]
    if images.skipped:
        notes = [*notes, f"{counted(len(images.skipped), 'image')} left out, because unreadable"]
    return samples, notes


def _interval(pair: tuple[float, float], metric: str) -> str:
    return f"{_value(pair[0], metric)} to {_value(pair[1], metric)}"


def _value(value: float, metric: str) -> str:
    return f"{value:.5f}" if metric == "kid" else f"{value:.2f}"


_WHAT = {
    "student": "file to real images",
    "teacher": "original to real images",
    "to teacher": "file to the original",
}


def _table(found: Evaluation) -> Table:
    """Three lines a score: the distance, its noise floor, and their difference."""
    table = compact("", [], ["distance", "95 % interval"])
    for s in found.scores:
        c: Comparison = s.comparison
        rows = (
            (f"{NAMES[s.metric]}, {_WHAT[s.what]}", _value(c.value, s.metric), c.value_interval),
            ("  noise floor", _value(c.floor, s.metric), c.floor_interval),
            ("  above the floor", _value(c.value - c.floor, s.metric), c.interval),
        )
        for what, value, interval in rows:
            table.add_row(what, value, _interval(interval, s.metric))
    return table


def _verdicts(found: Evaluation) -> list[str]:
    lines: list[str] = []
    for s in found.scores:
        verdict = "distinguishable" if s.distinguishable else "not distinguishable"
        whom = "the original" if s.what == "to teacher" else "real images"
        lines.append(f"{NAMES[s.metric]}, {_WHAT[s.what]}: {verdict} from {whom}")
    lines += [_contest(c) for c in found.contests]
    return lines


def _contest(contest: Contest) -> str:
    low, high = contest.comparison.interval
    between = _interval((low, high), contest.metric)
    if not contest.distinguishable:
        verdict = "not distinguishable from the original"
    else:
        verdict = "farther than the original" if low > 0 else "nearer than the original"
    return (
        f"{NAMES[contest.metric]} to real images, file minus original: {between} (95 %): {verdict}"
    )


def _data(options: EvalJob, found: Evaluation, notes: list[str]) -> dict[str, Any]:
    def row(entry: Score | Contest) -> dict[str, Any]:
        facts: dict[str, Any] = asdict(entry)
        return {**facts, "distinguishable": entry.distinguishable}

    return {
        "snapshot": options.snapshot,
        "against": options.against,
        "data": options.data,
        "scores": [row(s) for s in found.scores],
        "student_minus_teacher": [row(c) for c in found.contests],
        "notes": notes,
    }
