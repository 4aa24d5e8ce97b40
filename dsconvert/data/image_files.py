"""Write images one by one: a folder that an interrupted job continues, or an official-layout zip.

In a folder an image is named after its class and seed (``00003/seed00000012.png``, without a class
``seed00000012.png``), so that a job skips those which are there. The zip is the official data-set
layout: stored files ``00000/img00000000.png`` and a ``dataset.json`` with ``[name, class]`` pairs.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dsconvert.config.choices import ImageFormat
from dsconvert.data.labels import LABELS
from dsconvert.data.pictures import encoded
from dsconvert.errors import OutputError
from dsconvert.util.files import check_target, whole_file
from dsconvert.util.foreign_text import from_json

RECORD = ".dsconvert-images.json"
"""The file of a folder that says how its images are made; a hidden one, which is no image."""
_SUFFIXES: dict[ImageFormat, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_NAME = re.compile(r"(?:(\d{5,})/)?seed\d{8,}\.(?:png|jpg|webp)")
Key = tuple[int, int | None]
"""Seed and class of an image."""
Paint = Callable[[Key], Image.Image]
Progress = Callable[[int], None]


class ImageFolder:
    """A folder of images that one job writes, perhaps in several runs.

    Args:
        path: the folder; made with the first image.
        format: of the files.
        made_by: facts that two images of one folder share (plain data for JSON).
        overwrite: whether images of other facts are replaced, and all are made again.

    Raises:
        OutputError: the path is no folder, its parent is missing, or it holds other files.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        format: ImageFormat,  # noqa: A002 - the command line's word
        made_by: Mapping[str, Any],
        overwrite: bool,
    ) -> None:
        self.path = Path(path)
        self._format: ImageFormat = format
        self._made_by = dict(made_by)
        self._again = overwrite
        check_folder(self.path)
        self._check_content(overwrite)

    def _check_content(self, overwrite: bool) -> None:
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        try:
            found = from_json((self.path / RECORD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise OutputError(
                f"{self.path} holds files that generate did not write; name a new folder."
            ) from None
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{self.path / RECORD} can't be read ({error}); name a new folder."
            ) from None
        if not isinstance(found, dict):
            raise OutputError(f"{self.path / RECORD} is damaged; name a new folder.")
        now = json.loads(json.dumps(self._made_by))
        if overwrite or found == now:
            return
        other = sorted(k for k in {*found, *now} if found.get(k) != now.get(k))
        raise OutputError(
            f"{self.path} holds images that were made otherwise ({', '.join(other)}); give "
            "--overwrite to replace them, or name a new folder."
        )

    def _place(self, key: Key) -> Path:
        seed, label = key
        folder = self.path if label is None else self.path / f"{label:05d}"
        return folder / f"seed{seed:08d}{_SUFFIXES[self._format]}"

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Return those of ``keys`` whose images are not in the folder (all, to replace them)."""
        return [k for k in keys if self._again or not self._place(k).is_file()]

    def write(self, keys: Sequence[Key], paint: Paint, progress: Progress) -> None:
        """Make and write the images of ``keys``, each whole or not at all; then the labels.

        Raises:
            OutputError: the disk can't take one. The images before it stay.
        """
        for done, key in enumerate(keys, 1):
            data = encoded(paint(key), self._format)
            if done == 1:
                self._begin()
            place = self._place(key)
            place.parent.mkdir(exist_ok=True)
            with whole_file(place, overwrite=True) as beside:
                beside.write_bytes(data)
            progress(done)
        self._label()

    def _begin(self) -> None:
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"can't make the folder {self.path}: {error}.") from error
        if self._again:  # the names of other seeds would say that they are of this job
            (self.path / LABELS).unlink(missing_ok=True)
            for path in [*self.path.glob("seed*"), *self.path.glob("[0-9]*/seed*")]:
                if _NAME.fullmatch(path.relative_to(self.path).as_posix()):
                    path.unlink()
                    if path.parent != self.path and not any(path.parent.iterdir()):
                        path.parent.rmdir()  # an empty folder would name a class
        with whole_file(self.path / RECORD, overwrite=True) as beside:
            beside.write_text(json.dumps(self._made_by), encoding="utf-8")

    def _label(self) -> None:
        """Write the classes of all images in the folder, where they have some."""
        names = sorted(p.relative_to(self.path).as_posix() for p in self.path.glob("*/seed*"))
        found = [(n, m[1]) for n in names if (m := _NAME.fullmatch(n))]
        if found:
            with whole_file(self.path / LABELS, overwrite=True) as beside:
                beside.write_text(_labels([(n, int(c)) for n, c in found]), encoding="utf-8")


def check_folder(path: Path) -> None:
    """Check that ``path`` is a folder, or can be made as one.

    Raises:
        OutputError: it is a file, or its own folder is missing or may not be written to.
    """
    if path.is_dir():
        if not os.access(path, os.W_OK | os.X_OK):
            raise OutputError(f"the folder {path} can't be written to; name another.")
        return
    if os.path.lexists(path):
        raise OutputError(f"{path} is a file, not a folder; name another.")
    check_target(path, overwrite=False)


def write_zip(
    path: str | os.PathLike[str],
    keys: Sequence[Key],
    paint: Paint,
    progress: Progress,
    *,
    format: ImageFormat,  # noqa: A002 - the command line's word
    overwrite: bool,
) -> None:
    """Write the images of ``keys`` as a data set in the official layout, whole or not at all.

    Raises:
        OutputError: see :func:`dsconvert.util.files.whole_file`.
    """
    labels: list[tuple[str, int]] = []
    with (
        whole_file(path, overwrite=overwrite) as beside,
        zipfile.ZipFile(beside, "w", compression=zipfile.ZIP_STORED) as archive,
    ):
        for i, key in enumerate(keys):
            name = f"{i // 1000:05d}/img{i:08d}{_SUFFIXES[format]}"
            archive.writestr(_entry(name), encoded(paint(key), format))
            if key[1] is not None:
                labels.append((name, key[1]))
            progress(i + 1)
        archive.writestr(_entry(LABELS), _labels(labels))


def _entry(name: str) -> zipfile.ZipInfo:
    """Return an entry without the time, so that the same images make the same file."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o644 << 16
    return entry


def _labels(pairs: Sequence[tuple[str, int]]) -> str:
    return json.dumps({"labels": [list(pair) for pair in pairs] or None})
