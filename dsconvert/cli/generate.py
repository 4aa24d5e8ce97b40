"""``generate``: a grid of images of given seeds, as the official ``gen_images.py`` makes them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dsconvert.cli.files import opened
from dsconvert.cli.output import Bars, emit, say
from dsconvert.cli.parser import Call
from dsconvert.config.files import Drawing, GenerateJob
from dsconvert.data.pictures import check_picture, grid, save_picture
from dsconvert.formats.base import GeneratorFile
from dsconvert.util.numbers import counted

Progress = Callable[[int], None]


def run(call: Call) -> None:
    """Write one image a seed into one picture."""
    options: GenerateJob = call.options
    check_picture(options.out, overwrite=options.overwrite)
    file = opened(options.snapshot, options)
    with Bars(hidden=options.quiet) as bars:
        progress = stage(bars, "images", len(options.seeds))
        images = images_of(file, options.seeds, options, progress)
    save_picture(grid(images), options.out, overwrite=options.overwrite)
    if options.json:
        emit({"snapshot": options.snapshot, "out": options.out, "seeds": options.seeds})
    else:
        say(f"wrote {counted(len(images), 'image')} to {options.out}")


def images_of(
    file: GeneratorFile,
    seeds: tuple[int, ...],
    drawing: Drawing,
    progress: Progress,
) -> Tensor:
    """Return one image a seed, in [-1, 1].

    Of an official snapshot, or its export, the latents are drawn as the official
    ``gen_images.py`` draws them; of another file from a torch generator of that seed. The model's
    own noise is seeded too, so that two models see the same draws.

    Raises:
        UsageError: a class where there is none, or the other way round; truncation of a generator
            that can't; unknown inputs.
    """
    draw, more = file.draws(drawing.label), file.truncation(drawing.trunc)
    model, picture = file.generator, file.picture()
    images: list[Tensor] = []
    model.eval()
    with torch.no_grad(), torch.random.fork_rng():
        for seed in seeds:
            arguments = draw(seed)
            torch.manual_seed(seed)
            images.append(picture(*arguments, **more).float())
            progress(len(images))
    return torch.cat(images)


def stage(bars: Bars, name: str, seeds: int) -> Progress:
    """One stage of the bars, with a step a seed."""
    return lambda done: bars(name, done, seeds)
