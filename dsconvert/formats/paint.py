"""Images of seeds by the generator of an opened file, as the official ``gen_images.py`` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.config.files import Drawing, Sampling
from dsconvert.formats.base import GeneratorFile
from dsconvert.model.inputs import map_tensors
from dsconvert.model.noise_source import noise_from

Progress = Callable[[int], None]
Paint = Callable[[tuple[Any, ...], int], Tensor]
"""``paint(arguments, seed)`` returns images (1, C, H, W) in [-1, 1]; the seed is of the noise."""


class _Truncated(nn.Module):
    """A generator that is called with further keywords."""

    def __init__(self, model: nn.Module, keywords: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.keywords = model, keywords

    def forward(self, *args: Any) -> Any:
        return self.model(*args, **self.keywords)


def picture_of(file: GeneratorFile, *, trunc: float, device: torch.device) -> nn.Module:
    """Return a module that makes the file's truncated images; the generator is moved to ``device``.

    Raises:
        UsageError: truncation of a generator that can't.
    """
    model, more = file.picture().to(device), file.truncation(trunc)
    return _Truncated(model, more) if more else model


def painter(file: GeneratorFile, sampling: Sampling, *, device: torch.device) -> Paint:
    """Return a function that makes images; the generator is moved to ``device``.

    Raises:
        UsageError: truncation of a generator that can't.
    """
    file.generator.eval().to(device)
    more, picture = file.truncation(sampling.trunc), file.picture()

    def paint(arguments: tuple[Any, ...], seed: int) -> Tensor:
        with torch.no_grad(), torch.random.fork_rng(), noise_from(picture, sampling.noise_source):
            there = map_tensors(lambda t: t.to(device, copy=True), arguments)
            torch.manual_seed(seed)
            return picture(*there, **more).float().cpu()

    return paint


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
    paint = painter(file, drawing, device=device)
    images: list[Tensor] = []
    for seed in seeds:
        images.append(paint(draw(seed), seed))
        progress(len(images))
    return torch.cat(images)
