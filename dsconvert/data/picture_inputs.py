"""Pictures as the inputs of a generator: random crops of a folder or zip of image files.

The pictures are split in two parts that share no picture. The fit and the polish draw from the
first; the held-out part, :attr:`PictureInputs.held_out`, only judges. The split depends on the
names of the files alone, so that ``compare`` and ``eval`` judge by the pictures that a ``convert``
with the same share never saw.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dsconvert.config.choices import Values
from dsconvert.config.pictures import Pictures
from dsconvert.data.archive import DataFiles, why_unreadable
from dsconvert.data.array_inputs import check_share, judging, shuffled
from dsconvert.data.images import CACHE_BYTES, check_levels, decode_whole
from dsconvert.data.pictures import check_channels
from dsconvert.errors import DataError, UsageError
from dsconvert.records.pictures import DEFAULT_CROP
from dsconvert.util.numbers import counted

_MOST = 4000
"""Pictures that are used of a larger set; more bring nothing to a fit."""


@dataclass(kw_only=True, eq=False)
class _Decoded:
    """Pictures that have been decoded, up to a limit of bytes."""

    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    nbytes: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"tensors": {}, "nbytes": 0}


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureInputs:
    """A sampler of random crops: ``inputs(n, generator)`` returns ``(pictures,)``.

    The crops are (n, channels, size, size), float32. Every random number comes from the generator.

    Attributes:
        path: the folder or zip.
        names: the pictures of this part.
        others: the pictures of the held-out part.
        size: side of a crop in pixels.
        channels: 1 (grey), 3 (RGB) or 4 (with alpha).
        values: the range of the values.
        skipped: the files that are left out, each with the reason.
    """

    path: Path
    names: tuple[str, ...]
    others: tuple[str, ...]
    size: int
    channels: int
    values: Values
    skipped: tuple[str, ...] = ()
    _files: DataFiles = field(repr=False)
    _decoded: _Decoded = field(repr=False, default_factory=_Decoded)

    @cached_property
    def held_out(self) -> PictureInputs:
        """The sampler of the held-out part; of that part, itself."""
        return replace(self, names=self.others, others=()) if len(self.others) else self

    def __call__(self, n: int, generator: torch.Generator) -> tuple[Tensor]:
        """Return a batch of ``n`` crops of as many different pictures as there are.

        Raises:
            DataError: a picture can't be decoded.
            UsageError: this part holds no picture.
        """
        if not self.names:
            raise UsageError(
                f"all pictures of {self.path} are held out, so none is left to fit to; give a "
                "smaller --held-out (held_out= in Python)."
            )
        chosen = shuffled(len(self.names), n, generator)
        crops = [self._crop(self._picture(self.names[i]), generator) for i in chosen]
        scaled = torch.stack(crops).float() / 255
        return (scaled if self.values == "unit" else scaled * 2 - 1,)

    def _crop(self, picture: Tensor, generator: torch.Generator) -> Tensor:
        top, left = (
            int(torch.randint(extent - self.size + 1, (), generator=generator, device="cpu"))
            for extent in picture.shape[1:]
        )
        return picture[:, top : top + self.size, left : left + self.size]

    def _picture(self, name: str) -> Tensor:
        kept = self._decoded
        if name in kept.tensors:
            return kept.tensors[name]
        try:
            made = decode_whole(self._files.read(name), self.channels)
        except Exception as error:  # Pillow raises errors of many types on a broken file
            raise DataError(
                f"{name} in {self.path} can't be decoded ({why_unreadable(error)}). Remove that "
                "file, or copy it again."
            ) from error
        if kept.nbytes + made.numel() <= CACHE_BYTES:
            kept.tensors[name] = made
            kept.nbytes += made.numel()
        return made


def picture_inputs(
    path: str | os.PathLike[str],
    *,
    size: int = DEFAULT_CROP,
    channels: int = 3,
    values: Values = "unit",
    held_out: float = Pictures.held_out,
) -> PictureInputs:
    """Return a sampler of random crops of the images in a folder or zip.

    It is a value of ``inputs=`` wherever a generator reads pictures: :func:`dsconvert.convert`,
    :func:`dsconvert.apply`, :func:`dsconvert.open_file`. Images that are smaller than a crop, or
    that can't be read, are left out.

    Args:
        path: a folder (searched to any depth) or a zip.
        size: side of the crops in pixels.
        channels: 1 (grey), 3 (RGB) or 4 (with alpha), as the model reads.
        values: ``unit`` (0 to 1) or ``signed`` (-1 to 1), as the model reads.
        held_out: share of the pictures that only judge; 1: all of them, for comparisons.

    Raises:
        DataError: there are no such data, or fewer than two usable images in them.
        UsageError: an option is out of range.
    """
    _check(size, channels, values, held_out)
    files = DataFiles(path)
    Image.init()
    known = [n for n in files.names if PurePosixPath(n).suffix.lower() in Image.EXTENSION]
    order = sorted(known, key=fixed_order)[:_MOST]
    # Before any is left out: a smaller crop must not move a picture to the other part.
    chosen = set(order[: judging(len(order), held_out)])
    skipped: list[str] = []
    parts: tuple[list[str], list[str]] = ([], [])
    for name in order:
        why = _problem(files, name, size)
        if why is None:
            parts[name in chosen].append(name)
        else:
            skipped.append(f"{name} ({why})")
    fitted, judged = parts
    if not judged or (not fitted and held_out < 1):
        left_out = f"; left out: {skipped[0]}" if skipped else ""
        raise DataError(
            f"{files.path} holds {counted(len(fitted), 'image')} to fit to and {len(judged)} to "
            f"judge by, of {size} pixels or more a side, and both need 1 or more{left_out}. Name "
            "other pictures, or make smaller crops (--crop, size= in Python)."
        )
    return PictureInputs(
        path=files.path,
        names=tuple(fitted),
        others=tuple(judged),
        size=size,
        channels=channels,
        values=values,
        skipped=tuple(skipped),
        _files=files,
    )


def _check(size: int, channels: int, values: str, held_out: float) -> None:
    if size < 1:
        raise UsageError(f"a crop of {size} pixels has no image; give 1 or more.")
    check_channels(channels)
    if values not in ("unit", "signed"):
        raise UsageError(f"values are 'unit' (0 to 1) or 'signed' (-1 to 1), not {values!r}.")
    check_share(held_out)


def fixed_order(name: str) -> bytes:
    """Return a key that orders names as a fixed shuffle does."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def _problem(files: DataFiles, name: str, size: int) -> str | None:
    """Return the reason why an image can't be cropped; None where it can. Reads its header."""
    try:
        with Image.open(BytesIO(files.read(name))) as opened:
            check_levels(opened)
            width, height = opened.size
    except Exception as error:  # Pillow raises errors of many types on a broken file
        return why_unreadable(error)
    return None if min(width, height) >= size else f"{width} x {height} pixels"


def as_shown(pictures: Sequence[Tensor] | Tensor, values: Values) -> Tensor:
    """Return crops (n, C, H, W) in [-1, 1], as pictures are shown."""
    batch = pictures if isinstance(pictures, Tensor) else torch.cat(list(pictures))
    return batch * 2 - 1 if values == "unit" else batch
