"""Images of one size: a folder or an official zip, decoded.

The size rule: apply the EXIF rotation, crop the largest centred rectangle of the wanted shape (for
a training, a square), and resize it with Pillow's antialiased Lanczos filter (an image that already
has the size stays as it is). Grey images are repeated in three channels, and transparent ones are
composited on white. 16-bit grey is scaled to 8 bits; of 16-bit colours Pillow reads the high bytes.
An image that can't be read is left out, and its name is reported; so is one of 32-bit levels, whose
range no file says.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from dsconvert.data.archive import DataFiles, why_unreadable
from dsconvert.data.labels import read_labels
from dsconvert.data.pictures import MODES, check_channels
from dsconvert.errors import DataError
from dsconvert.util.numbers import counted
from dsconvert.util.progress import Progress

CACHE_BYTES = 1 << 30
"""Decoded sets of up to this size stay in memory; they need no worker processes."""
_MOST_BROKEN = 100
"""Unreadable images in a row after which a data set counts as broken."""
_LOG = logging.getLogger(__name__)


def decode(data: bytes, size: int | tuple[int, int], channels: int) -> Tensor:
    """Decode an image file to uint8 (C, H, W) by the size rule of this module.

    Args:
        data: the content of the file.
        size: side of a square, or (height, width).
        channels: 1 (grey), 3 or 4 (with alpha).

    Raises:
        OSError, ValueError, SyntaxError: Pillow can't decode the image, or its levels are of an
            unknown range.
    """
    picture = _picture(data, channels)
    height, width = (size, size) if isinstance(size, int) else size
    if picture.size != (width, height):
        across, down = _largest(picture.size, (width, height))
        left, top = (picture.width - across) // 2, (picture.height - down) // 2
        # Crop first, so that the filter does not mix in the pixels outside.
        part = picture.crop((left, top, left + across, top + down))
        picture = part.resize((width, height), Image.Resampling.LANCZOS)
    return _pixels(picture, channels)


def _largest(found: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """Return width and height of the largest part of a picture that has the wanted shape."""
    (across, down), (width, height) = found, wanted
    if across * height > down * width:
        return max(1, round(down * width / height)), down
    return across, max(1, round(across * height / width))


def decode_whole(data: bytes, channels: int) -> Tensor:
    """Decode an image file to uint8 (C, H, W) at its own size, by the same rules otherwise.

    Raises:
        OSError, ValueError, SyntaxError: see :func:`decode`.
    """
    return _pixels(_picture(data, channels), channels)


def _picture(data: bytes, channels: int) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # palettes with transparency, odd EXIF
        with Image.open(BytesIO(data)) as opened:
            check_levels(opened)
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I"):
                picture = _eight_bit(picture)
            if channels != 4 and picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            return picture.convert(MODES[channels])


def _pixels(picture: Image.Image, channels: int) -> Tensor:
    array = np.asarray(picture).reshape(picture.height, picture.width, channels)
    return torch.from_numpy(array.transpose(2, 0, 1).copy())


def check_levels(opened: Image.Image) -> None:
    """Refuse an opened image whose white no file says: of 32-bit integers or floats.

    Raises:
        ValueError: it is one.
    """
    # Mode I is also that of 16-bit PGM files, and of PNG files before Pillow 10.3.
    if opened.mode == "F" or (opened.mode == "I" and opened.format not in ("PNG", "PPM")):
        raise ValueError(
            f"grey levels of an unknown range (mode {opened.mode}); save them with 8 or 16 bits"
        )


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bit; Pillow's own conversion clips instead."""
    values = np.asarray(picture).astype(np.float64)
    return Image.fromarray((values / 65535 * 255).round().clip(0, 255).astype(np.uint8))


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images of one size, with their labels.

    ``labels`` is None (no classes), int64 ``(N,)``, or float32 ``(N, classes)``.
    """

    path: Path
    names: tuple[str, ...]
    size: tuple[int, int]
    """Height and width in pixels."""
    channels: int
    labels: Tensor | None
    classes: int
    skipped: tuple[str, ...] = ()
    """The images that could not be read when the set was decoded, each with the reason."""
    files: DataFiles = field(repr=False)
    decoded: Tensor | None = field(default=None, repr=False)
    """All images, uint8 ``(N, C, H, W)``, where they fit into memory."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def resolution(self) -> int:
        """Side of square images in pixels; of others the height."""
        return self.size[0]

    @property
    def fingerprint(self) -> str:
        """A hash of the images' names and file sizes, which tells other data apart."""
        lines = (f"{name}\0{self.files.size(name)}\n" for name in self.names)
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def image(self, index: int) -> tuple[Tensor, int, str | None]:
        """Return an image as uint8 (C, H, W), its index, and a problem (None: there was none).

        Where image ``index`` can't be read, this returns the next one that can.

        Raises:
            DataError: a hundred images in a row, or all of a smaller set, can't be read.
        """
        if self.decoded is not None:
            return self.decoded[index], index, None
        problem: str | None = None
        tried = min(_MOST_BROKEN, len(self))
        for step in range(tried):
            at = (index + step) % len(self)
            found = self._decode(at)
            if isinstance(found, Tensor):
                return found, at, problem
            problem = problem or found
        raise DataError(
            f"{counted(tried, 'image')} in a row can't be read in {self.path}: {problem}."
        )

    def _decode(self, index: int) -> Tensor | str:
        name = self.names[index]
        try:
            return decode(self.files.read(name), self.size, self.channels)
        except Exception as error:  # Pillow raises errors of many types on a broken file
            return f"{name} ({why_unreadable(error)})"

    def label(self, indices: Tensor) -> Tensor:
        """Return the labels of ``indices`` (n,) as float32 (n, classes): one-hot, or vectors."""
        if self.labels is None:
            return torch.zeros(len(indices), 0, device="cpu")
        rows = self.labels[indices]
        return rows if rows.dim() == 2 else F.one_hot(rows, self.classes).float()


def open_images(
    path: str | os.PathLike[str],
    *,
    resolution: int | tuple[int, int] | None = None,
    channels: int = 3,
    conditional: bool = False,
    cache: Literal["auto", "always", "never"] = "auto",
    limit: int | None = None,
    progress: Progress | None = None,
) -> ImageSet:
    """Open a data set.

    Args:
        path: a folder (searched to any depth) or a zip, as the official ``dataset_tool.py`` writes.
        resolution: side of the images in pixels, or (height, width); None: the shorter side of the
            first one.
        channels: 1 (grey), 3 or 4 (with alpha).
        conditional: read labels, see :func:`dsconvert.data.labels.read_labels`.
        cache: whether decoded images stay in memory (``auto``: sets of up to 1 GiB).
        limit: use only the first ``limit`` images, in the order of their names.
        progress: called with ``("decoding", done, total, "")``.

    Raises:
        DataError: there are no such data, no readable image in them, or the labels do not fit.
        UsageError: another number of channels.
    """
    check_channels(channels)
    files = DataFiles(path)
    Image.init()
    names = [n for n in files.names if PurePosixPath(n).suffix.lower() in Image.EXTENSION][:limit]
    if not names:
        raise DataError(f"{files.path} holds no images that Pillow knows by their suffix.")
    side = resolution or _side(files, names)
    size = (side, side) if isinstance(side, int) else side
    labels = read_labels(files, names) if conditional else None
    classes = 0
    if labels is not None:
        classes = int(labels.max()) + 1 if labels.dim() == 1 else labels.shape[1]
    made = ImageSet(
        path=files.path,
        names=tuple(names),
        size=size,
        channels=channels,
        labels=labels,
        classes=classes,
        files=files,
    )
    small = len(names) * channels * math.prod(size) <= CACHE_BYTES
    return _decoded(made, progress) if cache == "always" or (cache == "auto" and small) else made


def _side(files: DataFiles, names: Sequence[str]) -> int:
    for name in names[:100]:
        try:
            with Image.open(BytesIO(files.read(name))) as picture:
                return min(picture.size)
        except Exception:
            continue
    raise DataError(f"none of the first images of {files.path} can be read: {names[0]}, ...")


def _decoded(images: ImageSet, progress: Progress | None) -> ImageSet:
    kept: list[Tensor] = []
    good: list[int] = []
    skipped: list[str] = []
    # Pillow releases the interpreter lock while it decodes; a zip has one file position.
    threads = min(8, os.cpu_count() or 1) if images.path.is_dir() else 1
    with ThreadPoolExecutor(threads) as pool:
        for i, found in enumerate(pool.map(images._decode, range(len(images)))):
            if isinstance(found, Tensor):
                kept.append(found)
                good.append(i)
            else:
                skipped.append(found)
                _LOG.warning("left out, can't be read: %s", found)
            if progress is not None:
                progress("decoding", i + 1, len(images), "")
    if not kept:
        raise DataError(f"not one of the {len(images)} images of {images.path} can be read: "
                        f"{skipped[0]}.")  # fmt: skip
    return replace(
        images,
        names=tuple(images.names[i] for i in good),
        labels=None if images.labels is None else images.labels[torch.tensor(good, device="cpu")],
        skipped=tuple(skipped),
        decoded=torch.stack(kept),
    )
