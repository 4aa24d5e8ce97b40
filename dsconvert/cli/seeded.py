"""Images of given seeds, as the official ``gen_images.py`` makes them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import torch
from torch import Tensor

from dsconvert.cli.output import Bars
from dsconvert.formats.base import GeneratorFile

Progress = Callable[[int], None]


def images_of(
    file: GeneratorFile,
    seeds: tuple[int, ...],
    label: int | None,
    progress: Progress,
    *,
    trunc: float = 1.0,
) -> Tensor:
    """Return one image a seed, in [-1, 1].

    Of an official snapshot, or its export, the latents are drawn as the official
    ``gen_images.py`` draws them; of another file from a torch generator of that seed. The model's
    own noise is seeded too, so that two models see the same draws.

    Raises:
        UsageError: a class where there is none, or the other way round; truncation of a generator
            that can't; unknown inputs.
    """
    draw, more = file.draws(label), file.truncation(trunc)
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


def stage(bars: Bars, name: str, options: Namespace) -> Progress:
    """One stage of the bars, with a step a seed."""
    return lambda done: bars(name, done, len(options.seeds))
