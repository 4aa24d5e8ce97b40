"""``eval``: how good a file's images are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from dsconvert.cli.eval_report import Measured, as_data, report
from dsconvert.cli.files import opened
from dsconvert.cli.output import Bars, emit, say
from dsconvert.cli.parser import Call
from dsconvert.config.measure import EvalJob
from dsconvert.data.classes import classes_of, open_labelled, with_class, with_classes_of
from dsconvert.data.images import ImageSet
from dsconvert.data.stream import to_range
from dsconvert.errors import UsageError
from dsconvert.formats.alike import check_same_inputs
from dsconvert.formats.paint import picture_of
from dsconvert.metrics.distance import Inputs, sample_images
from dsconvert.metrics.evaluate import FEW, Evaluation, Extractor, evaluate, extractors
from dsconvert.model.inputs import RandomPixels, held_out_inputs, needs_pictures
from dsconvert.util.devices import for_work
from dsconvert.util.numbers import counted

_BATCH = 25
_DEFAULT = 1000


def _halves(images: ImageSet, samples: int, seed: int) -> tuple[Iterator[Tensor], Iterator[Tensor]]:
    """Two disjoint random sets of ``samples`` images, in batches."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=draw, device="cpu").tolist()

    def batches(indices: list[int]) -> Iterator[Tensor]:
        for start in range(0, len(indices), _BATCH):
            found = [images.image(i)[0] for i in indices[start : start + _BATCH]]
            yield to_range(torch.stack(found), torch.device("cpu"))

    return batches(order[:samples]), batches(order[samples : 2 * samples])


def run(call: Call) -> None:
    """Measure, and give the verdict."""
    options: EvalJob = call.options
    # If a network can't be loaded, the command fails here, not after minutes of sampling.
    device = for_work(options.device)
    nets = extractors(options.measured, backbone=options.backbone, device=device)
    file = opened(options.snapshot, options)
    if file.sounds() is not None:
        raise UsageError(
            f"the generator of {options.snapshot} makes sounds, and eval measures pictures; "
            "compare measures the STFT distance of two vocoders."
        )
    student, inputs = picture_of(file, trunc=options.trunc, device=device), file.inputs()
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
        teacher = picture_of(original, trunc=options.trunc, device=device)
    channels, height, width = _image(student, inputs)
    if teacher is not None and (channels, height, width) != _image(teacher, inputs):
        raise UsageError(
            f"the images of {options.snapshot} and {options.against} differ in size: they can't be "
            "compared."
        )
    notes: list[str] = []
    samples = options.samples or _DEFAULT
    images: ImageSet | None = None
    classes, why = classes_of(inputs), "no data set was given that says how often each occurs"
    chosen = _chosen(options, classes)
    with Bars(hidden=options.quiet) as bars:
        if options.data:
            images, why = open_labelled(
                options.data,
                classes=classes,
                resolution=(height, width),
                channels=channels,
                progress=bars,
            )
            samples, notes = _count(images, options.samples, notes)
        mixed = inputs
        if classes and images is not None and why is None:
            mixed = with_classes_of(inputs, images)
            notes.append(f"classes are drawn as often as {options.data} has them (dataset.json)")
        elif classes:
            notes.append(f"classes are drawn uniformly: {why}")
        draws = [
            _evaluated(
                student, teacher, mixed, nets, options, bars,
                images=images, samples=samples, draw=draw,
            )
            for draw in range(options.draws)
        ]  # fmt: skip
        each = {
            label: _evaluated(
                student, teacher, with_class(inputs, label), nets, options, bars,
                samples=samples, stage=f"class {label}: ",
            )
            for label in chosen
        }  # fmt: skip
    warnings = draws[0].warnings
    found = Measured(
        draws=tuple(draws),
        classes=each,
        samples=samples,
        notes=(*notes, *warnings),
    )
    if options.json:
        emit(as_data(options, found))
    else:
        say(*report(options, found))


def _chosen(options: EvalJob, classes: int) -> tuple[int, ...]:
    """Return the classes to measure one by one.

    Raises:
        UsageError: there are none, or one is out of range.
    """
    if options.per_class is None:
        return ()
    if not classes:
        raise UsageError(f"--per-class: the generator of {options.snapshot} is unconditional.")
    beyond = [label for label in options.per_class if label >= classes]
    if beyond:
        raise UsageError(f"--per-class {beyond[0]} is outside 0..{classes - 1}.")
    return tuple(dict.fromkeys(options.per_class)) or tuple(range(classes))


def _evaluated(
    student: nn.Module,
    teacher: nn.Module | None,
    inputs: Inputs,
    nets: Mapping[str, Extractor],
    options: EvalJob,
    bars: Bars,
    *,
    samples: int,
    images: ImageSet | None = None,
    draw: int = 0,
    stage: str = "",
) -> Evaluation:
    """Evaluate on the latents of one draw; draws share none."""
    seed = (options.seed + 2 * draw) % 2**32
    if options.draws > 1 and not stage:
        stage = f"draw {draw + 1}: "
    return evaluate(
        student,
        inputs,
        nets=nets,
        metrics=options.measured,
        teacher=teacher,
        real=None if images is None else _halves(images, samples, seed),
        samples=samples,
        seed=seed,
        bootstrap=options.bootstrap,
        progress=lambda name, done, total: bars(f"{stage}{name}", done, total),
    )


def _image(model: nn.Module, inputs: Inputs) -> tuple[int, int, int]:
    """Channels, height and width of a generator's images."""
    _, channels, height, width = sample_images(model, inputs, samples=1, seed=0).shape
    return channels, height, width


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
