"""Images of tensors: grids, side-by-side sheets, PSNR, PNG files (whole or not at all)."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dsconvert.errors import OutputError, UsageError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_LABEL = 22


def to_images(batch: Tensor) -> list[Image.Image]:
    """``(N, C, H, W)`` in [-1, 1], C of 1, 3 or 4, to PIL images.

    Levels are those of the official ``gen_images.py``: ``x * 127.5 + 128``, clamped, cut to a byte.
    NaN becomes black.

    Raises:
        UsageError: no images, or another number of channels.
    """
    if batch.dim() != 4 or not len(batch):
        raise UsageError(f"images are (N, C, H, W) with N of 1 or more, not {list(batch.shape)}.")
    channels = batch.shape[1]
    if channels not in _MODES:
        raise UsageError(f"images have 1, 3 or 4 channels, these have {channels}.")
    finite = batch.detach().float().cpu().nan_to_num(-1, 1, -1)
    levels = (finite.clamp(-1, 1) * 127.5 + 128).clamp(0, 255).byte()
    arrays: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = list(
        levels.permute(0, 2, 3, 1).numpy()
    )
    return [Image.fromarray(a[..., 0] if channels == 1 else a, _MODES[channels]) for a in arrays]


def _opaque(picture: Image.Image) -> Image.Image:
    """RGB on white: what a viewer shows of a picture with alpha."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def grid(batch: Tensor, *, columns: int | None = None) -> Image.Image:
    """One RGB sheet of ``(N, C, H, W)`` images, row by row, on white.

    Raises:
        UsageError: see :func:`to_images`, or ``columns`` under 1.
    """
    pictures = to_images(batch)
    columns = max(1, round(len(pictures) ** 0.5)) if columns is None else columns
    if columns < 1:
        raise UsageError(f"a grid has 1 or more columns, not {columns}.")
    rows = -(-len(pictures) // columns)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(_opaque(picture), (i % columns * width, i // columns * height))
    return sheet


def side_by_side(
    rows: Mapping[str, Tensor], *, with_psnr: bool = False, amplify: float | None = None
) -> Image.Image:
    """One labelled row a model; the same column is the same latent.

    Args:
        rows: label to ``(N, C, H, W)`` in [-1, 1]; the first row is the reference.
        with_psnr: add the mean PSNR to the reference to each further label.
        amplify: add a row below each further one: its difference to the reference, this many
            times, around mid-grey.

    Raises:
        UsageError: no rows, or (where rows are compared) rows of different shapes.
    """
    if not rows:
        raise UsageError("there are no images to put side by side.")
    _, reference = next(iter(rows.items()))
    pictures: list[tuple[str, list[Image.Image]]] = []
    for i, (label, batch) in enumerate(rows.items()):
        if i and with_psnr:
            label = f"{label} (PSNR {psnr(batch, reference).mean():.1f} dB)"
        pictures.append((label, to_images(batch)))
        if i and amplify is not None:
            _same_shape(batch, reference)
            # The alpha channel has nothing to show here.
            delta = (batch.float().clamp(-1, 1) - reference.float().clamp(-1, 1))[:, :3]
            pictures.append((f"difference x{amplify:g}", to_images(delta * amplify)))
    width, height = pictures[0][1][0].size
    if any(p.size != (width, height) for _, row in pictures for p in row):
        raise UsageError("images side by side must be of one size.")
    columns = max(len(row) for _, row in pictures)
    sheet = Image.new("RGB", (columns * width, len(pictures) * (height + _LABEL)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for r, (label, row) in enumerate(pictures):
        top = r * (height + _LABEL)
        draw.text((4, top + 5), label, fill="black", font=font)
        for i, picture in enumerate(row):
            sheet.paste(_opaque(picture), (i * width, top + _LABEL))
    return sheet


def _same_shape(image: Tensor, reference: Tensor) -> None:
    if image.shape != reference.shape:
        raise UsageError(
            f"images of shape {list(image.shape)} and {list(reference.shape)} can't be compared."
        )


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, dB, for the range [-1, 1] (both clamped).

    Identical images have 126 dB rather than infinity.

    Raises:
        UsageError: the shapes differ.
    """
    _same_shape(image, reference)
    error = (image.float().clamp(-1, 1) - reference.float().clamp(-1, 1)).square()
    return 10 * torch.log10(4 / error.mean((1, 2, 3)).clamp_min(1e-12))


def check_target(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """The output's path, if it may be written.

    Raises:
        OutputError: it exists (and ``overwrite`` is off), is a folder, or its folder is missing.
    """
    target = Path(path)
    if "\0" in str(target):
        raise OutputError(f"can't write {str(target)!r}: no name may hold a NUL; give another.")
    try:
        if target.is_dir():
            raise OutputError(f"{target} is a folder; name a file in it.")
        if target.exists() and not target.is_file():
            # A file renamed to /dev/null would take that away from the whole system.
            raise OutputError(f"{target} is a device or pipe; name a file.")
        if target.exists() and not overwrite:
            raise OutputError(f"{target} exists; give --overwrite to replace it, or another name.")
        if not target.parent.is_dir():
            raise OutputError(f"the folder {target.parent} does not exist; make it first.")
        # Asked before the work: to find out after minutes of it would be late.
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {target.parent} can't be written to; name another.")
    except OSError as error:  # a name too long, a folder that one may not enter
        raise OutputError(f"can't write {str(target)!r}: {error}; give another name.") from error
    return target


@contextmanager
def whole_file(path: str | os.PathLike[str], *, overwrite: bool) -> Generator[Path, None, None]:
    """A file beside ``path`` to write to; it is renamed to ``path`` if nothing goes wrong.

    Raises:
        OutputError: see :func:`check_target`, or the disk refuses.
    """
    target = check_target(path, overwrite=overwrite)
    # The name may be as long as the file system allows, so the part has one of its own.
    beside = target.with_name(f".dsconvert-{os.getpid()}.part")
    try:
        yield beside
        beside.replace(target)
    except OSError as error:
        raise OutputError(f"can't write {target}: {error}; make room or name another.") from error
    finally:
        beside.unlink(missing_ok=True)


def save_png(image: Image.Image, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write ``image`` beside ``path`` and rename it there.

    Raises:
        OutputError: see :func:`check_target`, or the disk refuses.
    """
    with whole_file(path, overwrite=overwrite) as beside:
        image.save(beside, format="PNG")
