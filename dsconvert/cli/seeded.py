"""Images of given seeds, as the official ``gen_images.py`` makes them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from dsconvert.cli.output import Bars
from dsconvert.errors import UsageError

Progress = Callable[[int], None]


def images_of(
    model: nn.Module, seeds: tuple[int, ...], label: int | None, progress: Progress
) -> Tensor:
    """One image a seed, latents drawn as the official ``gen_images.py`` draws them.

    The model's own noise is seeded too, so that two models see the same draws.
    """
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
    images: list[Tensor] = []
    model.eval()
    with torch.no_grad(), torch.random.fork_rng():
        for seed in seeds:
            z = torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim)).float()
            torch.manual_seed(seed)
            images.append(model(z, condition).float())
            progress(len(images))
    return torch.cat(images)


def stage(bars: Bars, name: str, options: Namespace) -> Progress:
    """One stage of the bars, with a step a seed."""
    return lambda done: bars(name, done, len(options.seeds))
