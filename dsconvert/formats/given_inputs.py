"""Give an opened file pictures, or the rows of a ``.npz``, as the inputs of its generator."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dsconvert.config.choices import Values
from dsconvert.config.pictures import Pictures
from dsconvert.data.array_inputs import array_inputs
from dsconvert.data.mel_inputs import mel_inputs
from dsconvert.data.picture_inputs import picture_inputs
from dsconvert.errors import UsageError
from dsconvert.formats.base import GeneratorFile
from dsconvert.model.inputs import checked

if TYPE_CHECKING:
    from dsconvert.model.inputs import Inputs
    from dsconvert.records.pictures import PictureSpec
    from dsconvert.records.sounds import MelSpec


def with_inputs(file: GeneratorFile, inputs: Inputs) -> GeneratorFile:
    """Return ``file`` with a sampler of the caller's own as the inputs of its generators.

    Raises:
        UsageError: it is no sampler.
    """
    return replace(file, given=checked(inputs))


def with_pictures(file: GeneratorFile, given: Pictures) -> GeneratorFile:
    """Return ``file`` with the inputs that ``--calibration`` names; as it is if that names none."""
    if given.calibration is None:
        return file
    return with_calibration(
        file, given.calibration, crop=given.crop, values=given.values, held_out=given.held_out
    )


def with_calibration(
    file: GeneratorFile,
    path: str | os.PathLike[str],
    *,
    crop: int | None = None,
    values: Values | None = None,
    held_out: float = Pictures.held_out,
) -> GeneratorFile:
    """Return ``file`` with pictures, sounds or the rows of a ``.npz`` as its generators' inputs.

    Args:
        file: the opened file.
        path: a folder or zip of images (``.wav`` files for a vocoder); or a ``.npz`` with one array
            for each argument of a call.
        crop: side of the crops in pixels, or frames of a spectrogram; None: the model's usual.
        values: the range that the model reads and writes; None: as its adapter says.
        held_out: share of the pictures or rows that only judge.

    Raises:
        UsageError: the generator reads no pictures, or an option does not fit it.
        DataError: there are no such data, or too few.
    """
    if Path(path).suffix.lower() == ".npz" and not Path(path).is_dir():
        if crop is not None:
            raise UsageError(
                f"--crop {crop}: {path} holds arrays, which are used as they are; leave it out."
            )
        return with_inputs(file, array_inputs(path, held_out=held_out))
    if (mels := file.sounds()) is not None:
        if values is not None:
            raise UsageError(
                f"--values {values}: the generator of {file.path} reads spectrograms; leave the "
                "option out."
            )
        mels = mels if crop is None else replace(mels, frames=crop)
        _check_frames(crop, mels)
        return with_inputs(file, mel_inputs(path, mels, held_out=held_out))
    spec = file.pictures()
    if spec is None:
        raise UsageError(
            f"the generator of {file.path} reads no pictures that --calibration {path} could "
            "give; leave the option out (or name a .npz with one array for each argument)."
        )
    if spec.values is not None and values is not None and values != spec.values:
        raise UsageError(
            f"--values {values}: the generator of {file.path} reads {spec.values} ones; leave the "
            "option out."
        )
    known = values or spec.values
    if known is None:
        raise UsageError(
            f"nothing says which values the generator of {file.path} reads: add --values unit "
            "(0 to 1) or --values signed (-1 to 1)."
        )
    size = spec.size if crop is None else crop
    _check_size(file, size, spec)
    made = picture_inputs(path, size=size, channels=spec.channels, values=known, held_out=held_out)
    return with_inputs(file, made)


def _check_frames(crop: int | None, spec: MelSpec) -> None:
    least = -(-spec.n_fft // spec.hop)
    if crop is not None and crop < least:
        raise UsageError(f"--crop {crop}: a spectrogram has {least} frames or more.")


def _check_size(file: GeneratorFile, size: int, spec: PictureSpec) -> None:
    if size < spec.least:
        raise UsageError(
            f"--crop {size}: the generator of {file.path} takes pictures of {spec.least} pixels a "
            "side or more."
        )
    if size % spec.multiple:
        raise UsageError(
            f"--crop {size}: the generator of {file.path} takes sides that are multiples of "
            f"{spec.multiple}; give {max(1, size // spec.multiple) * spec.multiple}."
        )
