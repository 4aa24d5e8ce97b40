"""``generate`` and ``compare`` of generators that make sounds: ``.wav`` files."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsconvert.data.mel_inputs import MelInputs
from dsconvert.data.spectrograms import RESOLUTIONS, stft_distance
from dsconvert.data.waveforms import in_a_row, wav_bytes, write_wav
from dsconvert.errors import UsageError
from dsconvert.formats.base import GeneratorFile
from dsconvert.records.sounds import MelSpec
from dsconvert.runs.html import page, render
from dsconvert.util.files import check_target, whole_file


def names_sound(path: str) -> bool:
    """Return whether an output's name ends in ``.wav``."""
    return Path(path).suffix.lower() == ".wav"


def names_page(path: str) -> bool:
    """Return whether an output's name ends in ``.html``: a page that plays sounds."""
    return Path(path).suffix.lower() == ".html"


def check_medium(file: GeneratorFile, out: str, *, page: bool = False) -> MelSpec | None:
    """Return the spectrograms that ``file`` reads, where it makes sounds; None: it makes pictures.

    Args:
        file: an opened file.
        out: the file that is to be written.
        page: whether that may be a page with players, too.

    Raises:
        UsageError: ``out`` names a file of the other medium.
    """
    spec = file.sounds()
    fits = names_sound(out) or (page and names_page(out))
    if spec is not None and not fits:
        also = " (or in .html, for a page that plays them)" if page else ""
        raise UsageError(
            f"the generator of {file.path} makes sounds, and --out {out} names no sound; end it in "
            f".wav{also}."
        )
    if spec is None and fits:
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
        write_wav(in_a_row(sounds, rate=spec.rate), path, rate=spec.rate, overwrite=overwrite)


def write_page(
    rows: dict[str, Tensor],
    path: Path,
    spec: MelSpec,
    *,
    text: str,
    seeds: tuple[int, ...],
    distances: list[float],
    overwrite: bool,
) -> None:
    """Write a page with a player for each sound; it needs no other file and no network.

    Args:
        rows: sounds (N, 1, 1, T) by their label, a column of players each.
        path: of the page.
        spec: of the spectrograms.
        text: above the players.
        seeds: N numbers.
        distances: N numbers.
        overwrite: whether ``path`` may exist.

    Raises:
        OutputError: it can't be written.
    """
    columns = [[base64.b64encode(wav_bytes(s.flatten(), rate=spec.rate)).decode() for s in sounds]
               for sounds in rows.values()]  # fmt: skip
    lines = [
        {"seed": seed, "sounds": [c[i] for c in columns], "distance": distance}
        for i, (seed, distance) in enumerate(zip(seeds, distances, strict=True))
    ]
    body = render("players", text=text, labels=list(rows), rows=lines)
    with whole_file(path, overwrite=overwrite) as beside:
        beside.write_text(page("A converted vocoder beside its original", body), encoding="utf-8")
