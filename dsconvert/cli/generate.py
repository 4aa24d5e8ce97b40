"""``generate``: a grid of images of given seeds, as the official ``gen_images.py`` makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dsconvert.cli.files import opened
from dsconvert.cli.output import Bars, emit, say
from dsconvert.cli.parser import Call
from dsconvert.cli.sounds import check_medium, check_sounds, names_sound, write_rows
from dsconvert.config.files import Drawing, GenerateJob
from dsconvert.data.pictures import check_picture, grid, save_picture
from dsconvert.formats.base import GeneratorFile
from dsconvert.model.inputs import map_tensors
from dsconvert.model.noise_source import noise_from
from dsconvert.util.devices import for_work
from dsconvert.util.numbers import counted

Progress = Callable[[int], None]


def run(call: Call) -> None:
    """Write one image a seed into one picture."""
    options: GenerateJob = call.options
    if names_sound(options.out):
        check_sounds(options.out, overwrite=options.overwrite)
    else:
        check_picture(options.out, overwrite=options.overwrite)
    device = for_work(options.device)
    file = opened(options.snapshot, options)
    spec = check_medium(file, options.out)
    with Bars(hidden=options.quiet) as bars:
        progress = stage(bars, "images", len(options.seeds))
        images = images_of(file, options.seeds, options, progress, device=device)
    if spec is None:
        save_picture(grid(images), options.out, overwrite=options.overwrite)
    else:
        write_rows({Path(options.out): images}, spec, overwrite=options.overwrite)
    if options.json:
        emit({"snapshot": options.snapshot, "out": options.out, "seeds": options.seeds})
    else:
        made = counted(len(images), "image" if spec is None else "sound")
        say(f"wrote {made} to {options.out}")


def images_of(
    file: GeneratorFile,
    seeds: tuple[int, ...],
    drawing: Drawing,
    progress: Progress,
    *,
    device: torch.device,
) -> Tensor:
    """Return one image a seed, in [-1, 1], on the CPU; the generator is moved to ``device``.

    Of an official snapshot, or its export, the latents are drawn as the official
    ``gen_images.py`` draws them; of another file from a torch generator of that seed. The model's
    own noise is seeded too, so that two models see the same draws.

    Raises:
        UsageError: a class where there is none, or the other way round; truncation of a generator
            that can't; unknown inputs.
    """
    draw = file.draws(drawing.label)
    file.generator.eval().to(device)
    more, picture = file.truncation(drawing.trunc), file.picture()
    images: list[Tensor] = []
    with torch.no_grad(), torch.random.fork_rng(), noise_from(picture, drawing.noise_source):
        for seed in seeds:
            arguments = map_tensors(lambda t: t.to(device), draw(seed))
            torch.manual_seed(seed)
            images.append(picture(*arguments, **more).float().cpu())
            progress(len(images))
    return torch.cat(images)


def stage(bars: Bars, name: str, seeds: int) -> Progress:
    """One stage of the bars, with a step a seed."""
    return lambda done: bars(name, done, seeds)
