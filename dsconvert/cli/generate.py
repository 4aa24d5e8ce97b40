"""``generate``: images of given seeds, as the official ``gen_images.py`` makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dsconvert.cli.files import opened
from dsconvert.cli.output import Bars, emit, say_whole
from dsconvert.cli.parser import Call
from dsconvert.cli.sounds import check_medium, names_sound, write_rows
from dsconvert.config.files import LARGEST_SHEET
from dsconvert.config.generate import GenerateJob
from dsconvert.data.image_files import ImageFolder, Key, write_zip
from dsconvert.data.pictures import (
    check_picture,
    check_size,
    grid,
    grid_size,
    opaque,
    save_picture,
    to_images,
)
from dsconvert.data.video_file import check_video, write_video
from dsconvert.errors import UsageError
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.paint import images_of, painter
from dsconvert.model.latent_walk import walk, walk_length
from dsconvert.util.devices import for_work
from dsconvert.util.files import check_target
from dsconvert.util.folders import sha256
from dsconvert.util.numbers import counted

__all__ = ["images_of", "painter", "run", "stage"]

Progress = Callable[[int], None]


def run(call: Call) -> None:
    """Write the images as the kind of output that the job's path names."""
    options: GenerateJob = call.options
    keys: list[Key] = [(s, c) for c in options.classes or (None,) for s in options.seeds]
    folder = _check(options, keys)
    device = for_work(options.device)
    file = opened(options.snapshot, options)
    spec = check_medium(file, options.out)
    images = _Images(file, options, device)
    wanted = keys if folder is None else folder.missing(keys)
    total = len(wanted)
    if options.kind == "video":
        total = walk_length(len(keys), frames=options.frames, loop=options.loop)
    with Bars(hidden=options.quiet) as bars:
        progress = stage(bars, "frames" if options.kind == "video" else "images", total)
        if folder is not None:
            folder.write(wanted, images.picture, progress)
        elif options.kind == "zip":
            write_zip(
                options.out,
                keys,
                images.picture,
                progress,
                format=options.format,
                overwrite=options.overwrite,
            )
        elif options.kind == "video":
            frames = images.walk(keys, progress)
            write_video(options.out, frames, fps=options.fps, overwrite=options.overwrite)
        else:
            made = images.batch(keys, progress)
            if spec is not None:
                write_rows({Path(options.out): made}, spec, overwrite=options.overwrite)
            else:
                sheet = grid(made, columns=options.columns)
                save_picture(sheet, options.out, overwrite=options.overwrite)
    _report(options, len(keys), written=total)


def _check(options: GenerateJob, keys: list[Key]) -> ImageFolder | None:
    """Check everything that can be checked before the file is read; return the output folder."""
    if options.kind == "folder":
        return ImageFolder(
            options.out,
            format=options.format,
            made_by={
                # Only a file that can be read has images; its own reader reports any other.
                "generator": sha256(options.snapshot),
                "trunc": options.trunc,
                "noise": options.noise_source,
                "format": options.format,
                "pictures": asdict(options.pictures),
                "module": asdict(options.source),
            },
            overwrite=options.overwrite,
        )
    if options.kind == "picture" and not names_sound(options.out):
        check_picture(options.out, overwrite=options.overwrite)
        if len(keys) > LARGEST_SHEET:
            raise UsageError(
                f"a grid of {len(keys)} images is too large (at most {LARGEST_SHEET}); name a "
                "FOLDER/ or a .zip."
            )
        return None
    check_target(options.out, overwrite=options.overwrite)
    if options.kind == "video":
        check_video()
        if len(keys) < 2:
            raise UsageError(
                "a video walks from seed to seed: give --seeds two or more, for example 0-3."
            )
    return None


def _report(options: GenerateJob, images: int, *, written: int) -> None:
    if options.json:
        facts = {"snapshot": options.snapshot, "out": options.out, "seeds": options.seeds}
        emit({**facts, "classes": options.classes, "written": written})
    elif options.kind == "video":
        seconds = written / options.fps
        say_whole(f"wrote {counted(written, 'frame')} ({seconds:.1f} s) to {options.out}")
    elif written < images:
        there = f"{images - written} were there"
        say_whole(f"wrote {counted(written, 'image')} to {options.out}; {there}")
    else:
        what = "sound" if names_sound(options.out) else "image"
        say_whole(f"wrote {counted(images, what)} to {options.out}")


class _Images:
    """The images of one file by seed and class."""

    def __init__(self, file: GeneratorFile, options: GenerateJob, device: torch.device) -> None:
        self._file, self._options = file, options
        self._draws = {c: file.draws(c) for c in options.classes or (None,)}
        self._paint = painter(file, options, device=device)

    def tensor(self, key: Key) -> Tensor:
        """Return an image (1, C, H, W) in [-1, 1]."""
        seed, label = key
        return self._paint(self._draws[label](seed), seed)

    def picture(self, key: Key) -> Image.Image:
        """Return an image as a picture."""
        return to_images(self.tensor(key))[0]

    def batch(self, keys: list[Key], progress: Progress) -> Tensor:
        """Return all images (N, C, H, W).

        Raises:
            OutputError: their grid is too large for its format; raised after the first image.
        """
        made: list[Tensor] = []
        for key in keys:
            made.append(self.tensor(key))
            if len(made) == 1 and not names_sound(self._options.out):
                self._check_grid(made[0], len(keys))
            progress(len(made))
        return torch.cat(made)

    def _check_grid(self, image: Tensor, count: int) -> None:
        columns, rows = grid_size(count, self._options.columns)
        width, height = columns * image.shape[-1], rows * image.shape[-2]
        remedy = "fewer images"
        if self._options.columns is not None:
            remedy += f", or {'fewer' if width > height else 'more'} --columns"
        check_size(self._options.out, width, height, remedy=remedy)

    def walk(self, keys: list[Key], progress: Progress) -> Any:
        """Yield the frames of a walk; the noise is that of the first seed in all of them."""
        stops = [self._draws[label](seed) for seed, label in keys]
        frames, loop = self._options.frames, self._options.loop
        for done, arguments in enumerate(walk(stops, frames=frames, loop=loop), 1):
            yield opaque(to_images(self._paint(arguments, keys[0][0]))[0])
            progress(done)


def stage(bars: Bars, name: str, seeds: int) -> Progress:
    """One stage of the bars, with a step a seed."""
    return lambda done: bars(name, done, seeds)
