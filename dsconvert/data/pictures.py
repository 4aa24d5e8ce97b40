"""Tensors as pictures: 8-bit levels, grids, side-by-side sheets, PSNR, and picture files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dsconvert.config.choices import ImageFormat
from dsconvert.errors import OutputError, UsageError
from dsconvert.util.files import check_target, whole_file

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode by the number of channels."""
_LABEL = 22
_PICTURES: dict[str, tuple[str, int, dict[str, Any]]] = {
    ".png": ("PNG", 2**31 - 1, {}),
    ".jpg": ("JPEG", 65500, {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", 65500, {"quality": 95, "subsampling": 0}),
    # exact: without it, pixels that are fully transparent lose their colours.
    ".webp": ("WEBP", 16383, {"lossless": True, "exact": True}),
}
"""Suffix to Pillow's name of the format, the largest side in pixels, and Pillow's options."""


def to_bytes(images: Tensor) -> Tensor:
    """Convert images in [-1, 1] to uint8 levels: ``x * 127.5 + 128``, clamped and rounded down.

    These are the levels of the official ``gen_images.py``. NaN becomes 0 (black).
    """
    finite = images.detach().float().nan_to_num(-1, 1, -1)
    return (finite.clamp(-1, 1) * 127.5 + 128).clamp(0, 255).byte()


def to_images(batch: Tensor) -> list[Image.Image]:
    """Convert ``(N, C, H, W)`` in [-1, 1], C of 1, 3 or 4, to PIL images (see :func:`to_bytes`).

    Raises:
        UsageError: no images, or another number of channels.
    """
    if batch.dim() != 4 or not len(batch):
        raise UsageError(f"images are (N, C, H, W) with N of 1 or more, not {list(batch.shape)}.")
    channels = batch.shape[1]
    check_channels(channels)
    levels = to_bytes(batch).cpu()
    arrays: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = list(
        levels.permute(0, 2, 3, 1).numpy()
    )
    return [Image.fromarray(a[..., 0] if channels == 1 else a, MODES[channels]) for a in arrays]


def check_channels(channels: int) -> None:
    """Check a number of channels.

    Raises:
        UsageError: images can't have it.
    """
    if channels not in MODES:
        raise UsageError(f"images have 1, 3 or 4 channels, these have {channels}.")


def encoded(picture: Image.Image, format: ImageFormat) -> bytes:  # noqa: A002 - a choice's name
    """Return ``picture`` as the content of a file; JPEG has no alpha channel, so it gets white."""
    name, _, options = _PICTURES[f".{format}"]
    if name == "JPEG" and picture.mode != "L":
        picture = opaque(picture)
    stream = BytesIO()
    picture.save(stream, format=name, **options)
    return stream.getvalue()


def opaque(picture: Image.Image) -> Image.Image:
    """Composite a picture on white, as a viewer shows transparency; RGB."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def grid(batch: Tensor, *, columns: int | None = None) -> Image.Image:
    """Arrange ``(N, C, H, W)`` images row by row on one white RGB sheet.

    Args:
        batch: the images, in [-1, 1].
        columns: at most one an image; None: about as many as rows.

    Raises:
        UsageError: see :func:`to_images`, or ``columns`` under 1.
    """
    pictures = to_images(batch)
    columns, rows = grid_size(len(pictures), columns)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(opaque(picture), (i % columns * width, i // columns * height))
    return sheet


def grid_size(count: int, columns: int | None) -> tuple[int, int]:
    """Return the columns and rows of a grid of ``count`` images.

    Raises:
        UsageError: ``columns`` is under 1.
    """
    columns = max(1, round(count**0.5)) if columns is None else min(columns, count)
    if columns < 1:
        raise UsageError(f"a grid has 1 or more columns, not {columns}.")
    return columns, -(-count // columns)


def side_by_side(
    rows: Mapping[str, Tensor], *, with_psnr: bool = False, amplify: float | None = None
) -> Image.Image:
    """Arrange one labelled row for each model; a column has one latent.

    Args:
        rows: label to ``(N, C, H, W)`` in [-1, 1]; the first row is the reference.
        with_psnr: add the mean PSNR to the reference to the label of each other row.
        amplify: below each other row, add its difference to the reference, times this factor,
            around mid-grey.

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
            # A difference has no transparency.
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
            sheet.paste(opaque(picture), (i * width, top + _LABEL))
    return sheet


def _same_shape(image: Tensor, reference: Tensor) -> None:
    if image.shape != reference.shape:
        raise UsageError(
            f"images of shape {list(image.shape)} and {list(reference.shape)} can't be compared."
        )


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in dB, for the range [-1, 1].

    Both images are clamped to that range. Identical images have 126 dB rather than infinity.

    Raises:
        UsageError: the shapes differ.
    """
    _same_shape(image, reference)
    error = (image.float().clamp(-1, 1) - reference.float().clamp(-1, 1)).square()
    return 10 * torch.log10(4 / error.mean((1, 2, 3)).clamp_min(1e-12))


def check_picture(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return the picture's path if it may be written and its suffix names a known format.

    Raises:
        UsageError: the suffix is unknown or missing.
        OutputError: see :func:`dsconvert.util.files.check_target`.
    """
    target = check_target(path, overwrite=overwrite)
    _picture_format(target)
    return target


def _picture_format(path: str | os.PathLike[str]) -> tuple[str, int, dict[str, Any]]:
    suffix = Path(path).suffix.lower()
    if suffix not in _PICTURES:
        ends = f"ends in {suffix}" if suffix else "has no suffix"
        raise UsageError(
            f"{path} {ends}, which names no format of pictures that can be written; end it in "
            f"{', '.join(list(_PICTURES)[:-1])} or {list(_PICTURES)[-1]}."
        )
    return _PICTURES[suffix]


def check_size(
    path: str | os.PathLike[str], width: int, height: int, *, remedy: str = "fewer images"
) -> None:
    """Check that the format of a picture file can hold so many pixels.

    Args:
        path: of the picture.
        width: in pixels.
        height: in pixels.
        remedy: beside another format.

    Raises:
        UsageError: the suffix names no picture format.
        OutputError: the picture is too large.
    """
    name, largest, _ = _picture_format(path)
    if max(width, height) > largest:
        raise OutputError(
            f"{path} would be {width} x {height} pixels, and {name} holds at most {largest} a "
            f"side; write a .png, or {remedy}."
        )


def save_picture(
    image: Image.Image, path: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write ``image``, whole or not at all, in the format of the suffix of ``path``.

    ``.png`` and ``.webp`` keep every level; ``.jpg`` has no alpha channel (the image
    is composited on white).

    Raises:
        UsageError: the suffix names no picture format.
        OutputError: see :func:`check_size` and :func:`dsconvert.util.files.whole_file`.
    """
    check_size(path, *image.size)
    name, _, options = _picture_format(path)
    if name == "JPEG" and image.mode != "L":
        image = opaque(image)
    with whole_file(path, overwrite=overwrite) as beside:
        image.save(beside, format=name, **options)


save_png = save_picture
"""The former name of :func:`save_picture`."""
