"""Mel spectrograms as the inputs of a vocoder: random crops of a folder or zip of ``.wav`` files.

As with pictures (:mod:`dsconvert.data.picture_inputs`), the files are split in two parts that share
none: the fit draws from the first, the held-out part only judges.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from dsconvert.config.pictures import Pictures
from dsconvert.data.archive import DataFiles, why_unreadable
from dsconvert.data.array_inputs import check_share, judging, shuffled
from dsconvert.data.picture_inputs import fixed_order
from dsconvert.data.spectrograms import mel_spectrogram
from dsconvert.data.waveforms import read_wav, resampled
from dsconvert.errors import DataError, UsageError
from dsconvert.records.sounds import MelSpec
from dsconvert.util.numbers import counted

_MOST = 1000
"""Files that are used of a larger set; more bring nothing to a fit."""
_SECONDS = 60
"""The beginning of a longer file that is used."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MelInputs:
    """A sampler of random crops: ``inputs(n, generator)`` returns ``(spectrograms,)``.

    Attributes:
        path: the folder or zip.
        spec: of the spectrograms (n, mels, frames).
        sounds: of this part, by the name of the file, at the rate of ``spec``.
        others: of the held-out part.
        skipped: the files that are left out, each with the reason.
    """

    path: Path
    spec: MelSpec
    sounds: dict[str, Tensor] = field(repr=False)
    others: dict[str, Tensor] = field(repr=False)
    skipped: tuple[str, ...] = ()

    @cached_property
    def held_out(self) -> MelInputs:
        """The sampler of the held-out part; of that part, itself."""
        return replace(self, sounds=self.others, others={}) if len(self.others) else self

    def __call__(self, n: int, generator: torch.Generator) -> tuple[Tensor]:
        """Return a batch of ``n`` crops of as many different files as there are.

        Raises:
            UsageError: this part holds no file.
        """
        return (mel_spectrogram(self.crops(n, generator), self.spec),)

    def crops(self, n: int, generator: torch.Generator) -> Tensor:
        """Return the sounds (n, frames * hop) behind such a batch.

        Raises:
            UsageError: this part holds no file.
        """
        if not self.sounds:
            raise UsageError(
                f"all sounds of {self.path} are held out, so none is left to fit to; give a "
                "smaller --held-out (held_out= in Python)."
            )
        sounds, length = list(self.sounds.values()), self.spec.frames * self.spec.hop
        crops: list[Tensor] = []
        for i in shuffled(len(sounds), n, generator):
            most = len(sounds[i]) - length + 1
            start = int(torch.randint(most, (), generator=generator, device="cpu"))
            crops.append(sounds[i][start : start + length])
        return torch.stack(crops)


def mel_inputs(
    path: str | os.PathLike[str], spec: MelSpec, *, held_out: float = Pictures.held_out
) -> MelInputs:
    """Return a sampler of the mel spectrograms of the ``.wav`` files in a folder or zip.

    Sounds of another rate are resampled; those that are shorter than a crop are left out.

    Args:
        path: a folder (searched to any depth) or a zip.
        spec: of the spectrograms.
        held_out: share of the files that only judge; 1: all of them, for comparisons.

    Raises:
        DataError: there are no such data, or fewer than two usable files in them.
        UsageError: the share is out of range.
    """
    check_share(held_out)
    files = DataFiles(path)
    known = [n for n in files.names if PurePosixPath(n).suffix.lower() == ".wav"]
    order = sorted(known, key=fixed_order)[:_MOST]
    # Before any is left out: a shorter crop must not move a file to the other part.
    chosen = set(order[: judging(len(order), held_out)])
    skipped: list[str] = []
    parts: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name in order:
        try:
            sound, rate = read_wav(files.read(name), name)
        except DataError as error:
            skipped.append(str(error))
            continue
        except Exception as error:  # a zip raises errors of many types on a damaged file
            skipped.append(f"{name} ({why_unreadable(error)})")
            continue
        sound = resampled(sound[: _SECONDS * rate], rate, spec.rate)
        if len(sound) < spec.frames * spec.hop:
            skipped.append(f"{name} (shorter than {spec.frames * spec.hop / spec.rate:.2f} s)")
        else:
            parts[name in chosen][name] = sound
    fitted, judged = parts
    if not judged or (not fitted and held_out < 1):
        left_out = f"; left out: {skipped[0]}" if skipped else ""
        raise DataError(
            f"{files.path} holds {counted(len(fitted), 'sound')} to fit to and {len(judged)} to "
            f"judge by (.wav, {spec.frames * spec.hop / spec.rate:.2f} s or more), and both need 1 "
            f"or more{left_out}. Name other sounds, or make shorter crops (--crop FRAMES)."
        )
    return MelInputs(
        path=files.path, spec=spec, sounds=fitted, others=judged, skipped=tuple(skipped)
    )
