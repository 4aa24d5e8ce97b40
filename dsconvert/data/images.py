"""Images to train on: a folder or an official zip, decoded to one size.

The size rule: EXIF rotation is applied, the largest centred square is cut out, and it is resized
with Pillow's antialiased Lanczos filter (an image that has the size already is not touched). Grey
images are repeated in three channels, transparent ones are put on white, deeper ones cut to 8 bit.
What can't be read is left out and named.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from dsconvert.errors import DataError

LABELS = "dataset.json"
_CLASSES = 1 << 16
"""A one-hot vector of more would be a typing error in the labels, and take the memory."""
CACHE_BYTES = 1 << 30
"""Decoded sets up to this size are kept in memory; no worker is then needed."""
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_LOG = logging.getLogger(__name__)
Progress = Callable[[str, int, int, str], None]


class Files:
    """The files of a folder or zip by their names, with ``/`` between parts."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._zip: tuple[int, zipfile.ZipFile] | None = None
        try:
            if self.path.is_dir():
                found = (p for p in self.path.rglob("*") if p.is_file())
                names = [p.relative_to(self.path).as_posix() for p in found]
            elif self.path.is_file():
                names = [n for n in self._archive().namelist() if not n.endswith("/")]
            else:
                raise DataError(
                    f"there is no data at {self.path}; name a folder or a zip of images."
                )
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{self.path} can't be read as a folder or zip of images ({error})."
            ) from error
        hidden = (".", "__MACOSX")
        self.names = tuple(
            sorted(n for n in names if not any(p.startswith(hidden) for p in n.split("/")))
        )

    def _archive(self) -> zipfile.ZipFile:
        # A worker process must not share the parent's file position.
        if self._zip is None or self._zip[0] != os.getpid():
            self._zip = (os.getpid(), zipfile.ZipFile(self.path))
        return self._zip[1]

    def read(self, name: str) -> bytes:
        """The bytes of one file."""
        if self.path.is_dir():
            return (self.path / name).read_bytes()
        return self._archive().read(name)

    def size(self, name: str) -> int:
        """Its length in bytes, without reading it."""
        if self.path.is_dir():
            return (self.path / name).stat().st_size
        return self._archive().getinfo(name).file_size

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}


def decode(data: bytes, resolution: int, channels: int) -> Tensor:
    """An encoded image to uint8 (C, R, R), by the rule of this module.

    Raises:
        OSError, ValueError, SyntaxError: whatever Pillow raises on a broken image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # palettes with transparency, odd EXIF
        with Image.open(BytesIO(data)) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith(("I", "F")):
                picture = _eight_bit(picture)
            if channels != 4 and picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            picture = picture.convert(_MODES[channels])
            if picture.size != (resolution, resolution):
                side = min(picture.size)
                left, top = ((extent - side) // 2 for extent in picture.size)
                # Cut first: a filter must not see what is cut off.
                square = picture.crop((left, top, left + side, top + side))
                picture = square.resize((resolution, resolution), Image.Resampling.LANCZOS)
            array = np.asarray(picture)
    array = array.reshape(resolution, resolution, channels).transpose(2, 0, 1)
    return torch.from_numpy(array.copy())


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Sixteen-bit grey to eight; Pillow's own conversion clips instead of scaling."""
    values = np.asarray(picture).astype(np.float64)
    top = 65535.0 if picture.mode.startswith("I") else max(float(values.max(initial=0.0)), 1.0)
    return Image.fromarray((values / top * 255).round().clip(0, 255).astype(np.uint8))


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images of one size, with their labels.

    ``labels`` is None (no classes), int64 ``(N,)``, or float32 ``(N, classes)``.
    """

    path: Path
    names: tuple[str, ...]
    resolution: int
    channels: int
    labels: Tensor | None
    classes: int
    skipped: tuple[str, ...] = ()
    """What could not be read when the set was decoded, each with its reason."""
    files: Files = field(repr=False)
    decoded: Tensor | None = field(default=None, repr=False)
    """All images, uint8 ``(N, C, R, R)``, where they fit into memory."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def fingerprint(self) -> str:
        """Of the images' names and the sizes of their files: other data have another."""
        lines = (f"{name}\0{self.files.size(name)}\n" for name in self.names)
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def image(self, index: int) -> tuple[Tensor, int, str | None]:
        """Image ``index`` as uint8 (C, R, R), the index it was taken from, and what was wrong.

        Where it can't be read, the next one that can be stands in.

        Raises:
            DataError: a hundred in a row can't be read.
        """
        if self.decoded is not None:
            return self.decoded[index], index, None
        problem: str | None = None
        for step in range(min(100, len(self))):
            at = (index + step) % len(self)
            found = self._decode(at)
            if isinstance(found, Tensor):
                return found, at, problem
            problem = problem or found
        raise DataError(f"a hundred images in a row can't be read in {self.path}: {problem}.")

    def _decode(self, index: int) -> Tensor | str:
        name = self.names[index]
        try:
            return decode(self.files.read(name), self.resolution, self.channels)
        except Exception as error:  # Pillow raises nearly anything on a broken file
            why = str(error).split(" <")[0][:120]  # not the address of a buffer, new each time
            return f"{name} ({type(error).__name__}: {why})"

    def label(self, indices: Tensor) -> Tensor:
        """Labels of ``indices`` (n,) as float32 (n, classes): one-hot, or the given vectors."""
        if self.labels is None:
            return torch.zeros(len(indices), 0)
        rows = self.labels[indices]
        return rows if rows.dim() == 2 else F.one_hot(rows, self.classes).float()


def open_images(
    path: str | os.PathLike[str],
    *,
    resolution: int | None = None,
    channels: int = 3,
    conditional: bool = False,
    cache: Literal["auto", "always", "never"] = "auto",
    limit: int | None = None,
    progress: Progress | None = None,
) -> ImageSet:
    """Open a data set.

    Args:
        path: a folder (searched to any depth) or a zip, as the official ``dataset_tool.py`` writes.
        resolution: side of the images; None: that of the first one.
        channels: 1 (grey), 3 or 4 (with alpha).
        conditional: use labels: ``dataset.json``, or in its absence the first folder of each name.
        cache: keep decoded images in memory (``auto``: up to 1 GiB).
        limit: use only the first so many, in order of their names.
        progress: called with ``("decoding", done, total, "")``.

    Raises:
        DataError: no such data, no readable image in it, or labels that do not fit.
    """
    if channels not in _MODES:
        raise DataError(f"images have 1, 3 or 4 channels, not {channels}.")
    files = Files(path)
    Image.init()
    names = [n for n in files.names if PurePosixPath(n).suffix.lower() in Image.EXTENSION][:limit]
    if not names:
        raise DataError(f"{files.path} holds no images that Pillow knows by their suffix.")
    side = resolution or _side(files, names)
    labels = _labels(files, names) if conditional else None
    classes = 0
    if labels is not None:
        classes = int(labels.max()) + 1 if labels.dim() == 1 else labels.shape[1]
    made = ImageSet(
        path=files.path,
        names=tuple(names),
        resolution=side,
        channels=channels,
        labels=labels,
        classes=classes,
        files=files,
    )
    small = len(names) * channels * side**2 <= CACHE_BYTES
    return _decoded(made, progress) if cache == "always" or (cache == "auto" and small) else made


def _side(files: Files, names: Sequence[str]) -> int:
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
    # Pillow lets go of the interpreter while it decodes; a zip is one file with one position.
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
        labels=None if images.labels is None else images.labels[torch.tensor(good)],
        skipped=tuple(skipped),
        decoded=torch.stack(kept),
    )


def _labels(files: Files, names: Sequence[str]) -> Tensor:
    if LABELS not in files.names:
        return _folder_labels(files, names)
    try:
        pairs = json.loads(files.read(LABELS))["labels"]
        table: dict[str, Any] = {str(k): v for k, v in pairs}
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{LABELS} in {files.path} has no labels (a list of [name, class] pairs under "
            f"'labels'): {error!r}. Write them, or train a generator without classes."
        ) from None
    missing = [n for n in names if n not in table]
    if missing:
        raise DataError(
            f"{LABELS} in {files.path} has no label for {len(missing)} of {len(names)} images: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}."
        )
    values = [table[n] for n in names]
    if all(type(v) is int and v >= 0 for v in values):
        if max(values) >= _CLASSES:
            raise DataError(
                f"{LABELS} in {files.path} has class {max(values)}; classes are counted from 0, "
                f"and {_CLASSES} are the most."
            )
        return torch.tensor(values, dtype=torch.int64)
    try:
        vectors = torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError):
        vectors = torch.zeros(())
    if vectors.dim() != 2 or not vectors.isfinite().all():
        raise DataError(
            f"the labels of {LABELS} in {files.path} are neither whole numbers of 0 or more nor "
            "vectors of one length."
        )
    return vectors


def _folder_labels(files: Files, names: Sequence[str]) -> Tensor:
    folders = [n.split("/")[0] if "/" in n else "" for n in names]
    known = sorted(set(folders))
    if "" in known or len(known) < 2:
        raise DataError(
            f"{files.path} has no {LABELS}, and its images are not in one folder a class: there is "
            "nothing to condition on. Give labels, or train a generator without classes."
        )
    place = {name: i for i, name in enumerate(known)}
    return torch.tensor([place[f] for f in folders], dtype=torch.int64)
