"""The quality in the report of ``convert``: measured on request, or where that is quick."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from dsconvert.cli.output import Bars
from dsconvert.config.convert import ConvertJob
from dsconvert.errors import MissingExtraError, UsageError
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.convert_file import FileConversion
from dsconvert.metrics.features import LiteFeatures
from dsconvert.metrics.quality import SAMPLES, SEEDS, Judge
from dsconvert.model.inputs import RandomPixels, held_out_inputs, needs_pictures
from dsconvert.records import Quality
from dsconvert.util.progress import stage

_SHARE = 0.2
"""Share of the conversion's time that a measurement may take where none was asked for."""
_LEAST = 10.0
"""Seconds that no measurement stays below: the features of 400 images alone."""
_PATIENCE, _FEWEST = 120.0, 32
"""Seconds that a proposed measurement takes, and the fewest images that say anything."""


def judge_of(
    file: GeneratorFile,
    *,
    samples: int,
    device: torch.device,
    seed: int = SEEDS["report"],
    features: LiteFeatures | None = None,
) -> Judge:
    """Return the judge of a file's main generator.

    Raises:
        UsageError: the generator can't be run, or makes no images.
    """
    inputs = file.inputs()
    if inputs is None:
        raise UsageError(
            f"the quality can't be measured: nothing says what the inputs of {file.path} look "
            "like; add --input SHAPE (say, --input 256)."
        )
    if isinstance(inputs, RandomPixels):
        raise UsageError(f"{needs_pictures(f'the generator of {file.path}', inputs)}.")
    teacher = file.picture().to(device)
    made = Judge(teacher, held_out_inputs(inputs), features=features, samples=samples, seed=seed)
    made.check()
    return made


def lite_features(device: torch.device) -> LiteFeatures | None:
    """Return the features of FD-lite0; None where the weights are not installed."""
    try:
        return LiteFeatures(device)
    except MissingExtraError:
        return None


def prepared(file: GeneratorFile, options: ConvertJob, device: torch.device) -> None:
    """Fail before the work if a measurement was asked for and is impossible.

    Raises:
        UsageError: the generator can't be run, or makes no images.
        MissingExtraError: the weights of the features are not installed.
    """
    if options.measure:
        judge_of(file, samples=2, device=device, features=LiteFeatures(device))


def measured(
    file: GeneratorFile,
    result: FileConversion,
    options: ConvertJob,
    device: torch.device,
    bars: Bars,
) -> FileConversion:
    """Return the result with the quality of its main generator, where that is to be measured.

    The failure of a measurement that was not asked for is a note.

    Raises:
        DsconvertError: one that was asked for is impossible.
    """
    key, main = result.main
    spent = sum(main.seconds.values())
    quick = options.measure is None
    if options.measure == 0 or (quick and _SHARE * spent < _LEAST):
        return result
    try:
        judge = judge_of(
            file, samples=options.measure or SAMPLES, device=device, features=lite_features(device)
        )
        student = file.picture(main.model).to(device)
        if quick:
            with stage(bars, "measuring the quality", "a trial of its time"):
                expected = judge.expected(student)
            if expected > _SHARE * spent:
                bars.note(not_measured(expected))
                return result
        found = judge.measure(student, progress=bars)
    except Exception as error:  # the result is written: what nobody asked for can't fail it
        if not quick:
            raise
        bars.note(f"quality not measured: {error}")
        return result
    finally:
        for model in (file.generator, main.model):
            _to_cpu(model)
    return with_quality(result, key, found)


def not_measured(expected: float) -> str:
    """Return the note that a measurement that nobody asked for was left out.

    Args:
        expected: its seconds. Where they are more than some minutes, fewer images are proposed.
    """
    note = f"quality not measured, which takes about {expected:.0f} s: --measure {SAMPLES}"
    fewer = max(_FEWEST, int(_PATIENCE * SAMPLES / expected))
    if expected <= 2 * _PATIENCE or fewer >= SAMPLES:
        return note
    took = expected * fewer / SAMPLES
    return f"{note}; or --measure {fewer}, about {took:.0f} s, with a wider interval"


def with_quality(result: FileConversion, key: str, found: Quality) -> FileConversion:
    """Return the result with a measured quality for one of its generators."""
    made = {
        k: dataclasses.replace(c, quality=found) if k == key else c
        for k, c in result.conversions.items()
    }
    return dataclasses.replace(result, conversions=made)


def _to_cpu(model: nn.Module) -> None:
    if any(p.device.type != "cpu" for p in model.parameters()):
        model.to("cpu")
