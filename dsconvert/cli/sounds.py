"""``generate`` and ``compare`` of generators that make sounds: ``.wav`` files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsconvert.data.mel_inputs import MelInputs
from dsconvert.data.spectrograms import RESOLUTIONS, stft_distance
from dsconvert.data.waveforms import write_wav
from dsconvert.errors import UsageError
from dsconvert.formats.base import GeneratorFile
from dsconvert.records.sounds import MelSpec
from dsconvert.util.files import check_target

_PAUSE = 0.3
"""Seconds between the sounds of two seeds."""


def names_sound(path: str) -> bool:
    """Return whether an output's name ends in ``.wav``."""
    return Path(path).suffix.lower() == ".wav"


def check_medium(file: GeneratorFile, out: str) -> MelSpec | None:
    """Return the spectrograms that ``file`` reads, where it makes sounds; None: it makes pictures.

    Raises:
        UsageError: ``out`` names a file of the other medium.
    """
    spec = file.sounds()
    if spec is not None and not names_sound(out):
        raise UsageError(
            f"the generator of {file.path} makes sounds, and --out {out} names no sound; end it in "
            ".wav."
        )
    if spec is None and names_sound(out):
        raise UsageError(
            f"the generator of {file.path} makes pictures, and --out {out} names a sound; end it "
            "in .png."
        )
    return spec


def check_sounds(out: str, *, overwrite: bool, parts: tuple[str, ...] = ("",)) -> list[Path]:
    """Return the files that are to be written: ``out``, and others beside it.

    Raises:
        OutputError: one can't be written.
    """
    path = Path(out)
    names = [path.with_name(f"{path.stem}{part}{path.suffix}") for part in parts]
    return [check_target(name, overwrite=overwrite) for name in names]


def in_a_row(sounds: Tensor, spec: MelSpec) -> Tensor:
    """Return sounds (N, 1, 1, T) one after the other, (T',), with pauses."""
    rows = sounds.flatten(1)
    pause = rows.new_zeros(round(_PAUSE * spec.rate))
    return torch.cat([part for row in rows for part in (row, pause)][:-1])


def compared(a: Tensor, b: Tensor, recordings: Tensor | None) -> tuple[dict[str, Any], str]:
    """Return the figures of sounds ``b`` (N, 1, 1, T) beside the original's ``a``, and a sentence.

    Args:
        a: of the original.
        b: of the other file.
        recordings: (N, T) that both were made from, where there are any.

    Raises:
        UsageError: they are too short for the largest window.
    """
    first, second = a.flatten(1), b.flatten(1)
    if first.shape[1] <= RESOLUTIONS[-1][0] // 2:
        raise UsageError(
            f"the sounds have {first.shape[1]} samples, too few for a distance; make longer crops "
            "(--crop FRAMES)."
        )
    found = stft_distance(second, first)
    data: dict[str, Any] = {
        "stft_distance": [float(v) for v in found],
        "stft_distance_mean": float(found.mean()),
    }
    text = f"STFT distance {found.mean():.3f} (mean), {found.max():.3f} (worst)"
    if recordings is not None:
        own, other = (float(stft_distance(s, recordings).mean()) for s in (first, second))
        data["to_recordings"] = {"snapshot": own, "other": other}
        text += f"; to the recordings: the original {own:.3f}, the other {other:.3f}"
    return data, text


def recordings_of(file: GeneratorFile, seeds: tuple[int, ...]) -> Tensor | None:
    """Return the recordings (N, T) behind the spectrograms of the seeds, where there are any."""
    inputs = file.inputs()
    if not isinstance(inputs, MelInputs):
        return None
    held = inputs.held_out
    return torch.cat([held.crops(1, torch.Generator().manual_seed(seed)) for seed in seeds])


def write_rows(rows: dict[Path, Tensor], spec: MelSpec, *, overwrite: bool) -> None:
    """Write sounds (N, 1, 1, T), each set into its file."""
    for path, sounds in rows.items():
        write_wav(in_a_row(sounds, spec), path, rate=spec.rate, overwrite=overwrite)
