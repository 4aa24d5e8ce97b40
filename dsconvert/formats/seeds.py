"""The arguments of a forward call that belong to a seed, as each codebase draws them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dsconvert.data.array_inputs import ArrayInputs
from dsconvert.data.classes import classes_of, with_class
from dsconvert.errors import UsageError
from dsconvert.model.inputs import RandomPixels, as_args, held_out_inputs, needs_pictures

if TYPE_CHECKING:
    from dsconvert.adapter import Sampler

Draw = Callable[[int], tuple[Any, ...]]
"""``draw(seed)`` returns the positional arguments of one forward call, batch 1."""


def official_draws(model: nn.Module, label: int | None) -> Draw:
    """Draw latents as the official ``gen_images.py`` does, with a one-hot class.

    Args:
        model: a generator with ``z_dim`` and ``c_dim`` (256 and 0 where it has none).
        label: the class; None for an unconditional generator.

    Raises:
        UsageError: a class where there is none, one out of range, or none where one is needed.
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
    return lambda seed: (
        torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim)).float(),
        condition,
    )


def sampled_draws(sampler: Sampler | None, label: int | None, path: Path | None) -> Draw:
    """Draw from ``sampler``, by a torch generator of the seed.

    Args:
        sampler: of the generator's inputs; None where they are unknown.
        label: the class, where the sampler draws classes; None: it draws them itself, if there are
            any.
        path: the file, for messages.

    Raises:
        UsageError: a class where there is none or out of range, or the inputs are unknown.
    """
    if label is not None:
        classes = classes_of(sampler)
        if not classes and isinstance(sampler, ArrayInputs):
            raise UsageError(f"--class was given, but {sampler.path} holds no classes.")
        if not classes:
            raise UsageError("--class was given, but this generator is unconditional.")
        if label >= classes:
            raise UsageError(f"--class {label} is outside 0..{classes - 1}.")
    if sampler is None:
        raise UsageError(unknown_inputs(path))
    if isinstance(sampler, RandomPixels):
        raise UsageError(f"{needs_pictures(f'the generator of {path}', sampler)}.")
    inputs = held_out_inputs(sampler)
    draw = inputs if label is None else with_class(inputs, label)
    return lambda seed: as_args(draw(1, torch.Generator().manual_seed(seed)))


def unknown_inputs(path: Path | None) -> str:
    """Return the message for a generator whose inputs are unknown."""
    return (
        f"nothing says what the generator of {path} is called with: give --input 256 "
        "(the shape of one latent; class:10 or onehot:10 for classes), or --calibration DIR|ZIP "
        "with --values where it reads pictures."
    )
