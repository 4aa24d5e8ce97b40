"""``generate``: a grid of images of given seeds, as the official ``gen_images.py`` makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsconvert.adapter import Truncates
from dsconvert.cli.files import opened
from dsconvert.cli.output import Bars, emit, say
from dsconvert.cli.parser import Call
from dsconvert.config.files import Drawing, GenerateJob
from dsconvert.data.pictures import check_picture, grid, save_picture
from dsconvert.errors import AdapterError, UsageError
from dsconvert.formats.official import Snapshot
from dsconvert.formats.registry import Opened, inputs_of, picture_of
from dsconvert.formats.safetensors.file import PlainFile

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
        say(f"wrote {len(images)} images to {options.out}")


def images_of(
    file: Opened,
    seeds: tuple[int, ...],
    drawing: Drawing,
    progress: Progress,
) -> Tensor:
    """One image a seed, in [-1, 1].

    Of an official snapshot, or its export, the latents are drawn as the official
    ``gen_images.py`` draws them; of another file from a torch generator of that seed. The model's
    own noise is seeded too, so that two models see the same draws.

    Raises:
        UsageError: a class where there is none, or the other way round; truncation of a generator
            that can't; unknown inputs.
    """
    model = file.generator
    official = isinstance(file, Snapshot) or (
        isinstance(file, PlainFile) and hasattr(model, "z_dim")
    )
    draw = _official(model, drawing.label) if official else _drawn(file, drawing.label)
    picture = picture_of(file)
    more = _truncated(file, drawing.trunc)
    images: list[Tensor] = []
    model.eval()
    with torch.no_grad(), torch.random.fork_rng():
        for seed in seeds:
            arguments = draw(seed)
            torch.manual_seed(seed)
            images.append(picture(*arguments, **more).float())
            progress(len(images))
    return torch.cat(images)


def _official(model: nn.Module, label: int | None) -> Callable[[int], tuple[Any, ...]]:
    z_dim, c_dim = int(getattr(model, "z_dim", 256)), int(getattr(model, "c_dim", 0))
    if label is not None and not c_dim:
        raise UsageError("--class was given, but this generator is unconditional.")
    if label is not None and label >= c_dim:
        raise UsageError(f"--class {label} is outside 0..{c_dim - 1}.")
    if c_dim and label is None:
        raise UsageError(f"this generator is conditional: give --class 0..{c_dim - 1}.")
    condition = torch.zeros(1, c_dim)
    if label is not None:
        condition[0, label] = 1
    return lambda seed: (
        torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim)).float(),
        condition,
    )


def _truncated(file: Opened, psi: float) -> Mapping[str, Any]:
    """The keywords of a call that truncates; none at psi 1."""
    if psi == 1:
        return {}
    model = file.generator
    adapter = getattr(file, "adapter", None)
    if not isinstance(adapter, Truncates):
        raise UsageError(
            f"--trunc {psi:g}: the {type(model).__name__} of {file.path} has no mapping network, "
            "whose mean latents could be pulled towards; leave it out."
        )
    try:
        return adapter.truncation(model, psi)
    except AdapterError as error:
        raise UsageError(f"--trunc {psi:g}: {file.path}: {error}; leave it out.") from None


def _drawn(file: Opened, label: int | None) -> Callable[[int], tuple[Any, ...]]:
    if label is not None:
        raise UsageError("--class was given, but this generator is unconditional.")
    sampler = inputs_of(file)
    if sampler is None:
        raise UsageError(
            f"nothing says what the generator of {file.path} is called with: give --input 256 "
            "(the shape of one latent)."
        )
    return lambda seed: sampler(1, torch.Generator().manual_seed(seed))


def stage(bars: Bars, name: str, seeds: int) -> Progress:
    """One stage of the bars, with a step a seed."""
    return lambda done: bars(name, done, seeds)
