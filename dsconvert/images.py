"""Images of tensors: grids, side-by-side sheets, PSNR, PNG files (whole or not at all)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dsconvert.errors import OutputError, UsageError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_LABEL = 22


def to_images(batch: Tensor) -> list[Image.Image]:
    """``(N, C, H, W)`` in [-1, 1], C of 1, 3 or 4, to PIL images (clamped).

    Raises:
        UsageError: another number of channels.
    """
    channels = batch.shape[1]
    if channels not in _MODES:
        raise UsageError(f"images have 1, 3 or 4 channels, these have {channels}.")
    levels = (batch.detach().float().cpu().clamp(-1, 1) * 127.5 + 128).clamp(0, 255).byte()
    arrays: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = list(
        levels.permute(0, 2, 3, 1).numpy()
    )
    return [Image.fromarray(a[..., 0] if channels == 1 else a, _MODES[channels]) for a in arrays]


def grid(batch: Tensor, *, columns: int | None = None) -> Image.Image:
    """One sheet of ``(N, C, H, W)`` images, row by row."""
    pictures = to_images(batch)
    columns = columns or max(1, round(len(pictures) ** 0.5))
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture.convert("RGB"), (i % columns * width, i // columns * height))
    return sheet


def side_by_side(rows: Mapping[str, Tensor]) -> Image.Image:
    """One labelled row a model; the same column is the same latent."""
    pictures = {label: to_images(batch) for label, batch in rows.items()}
    width, height = next(iter(pictures.values()))[0].size
    columns = max(len(p) for p in pictures.values())
    sheet = Image.new("RGB", (columns * width, len(rows) * (height + _LABEL)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for r, (label, row) in enumerate(pictures.items()):
        top = r * (height + _LABEL)
        draw.text((4, top + 5), label, fill="black", font=font)
        for i, picture in enumerate(row):
            sheet.paste(picture.convert("RGB"), (i * width, top + _LABEL))
    return sheet


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, dB, for the range [-1, 1] (both clamped)."""
    error = (image.float().clamp(-1, 1) - reference.float().clamp(-1, 1)).square()
    return 10 * torch.log10(4 / error.mean((1, 2, 3)).clamp_min(1e-12))


def check_target(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """The output's path, if it may be written.

    Raises:
        OutputError: it exists (and ``overwrite`` is off), is a folder, or its folder is missing.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"{target} is a folder; name a file in it.")
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists; give --overwrite to replace it, or another name.")
    if not target.parent.is_dir():
        raise OutputError(f"the folder {target.parent} does not exist; make it first.")
    return target


def save_png(image: Image.Image, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write ``image`` beside ``path`` and rename it there.

    Raises:
        OutputError: see :func:`check_target`, or the disk refuses.
    """
    target = check_target(path, overwrite=overwrite)
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        image.save(beside, format="PNG")
        beside.replace(target)
    except OSError as error:
        raise OutputError(f"can't write {target}: {error}.") from error
    finally:
        beside.unlink(missing_ok=True)
