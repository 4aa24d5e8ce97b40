"""Whether the generators of two files are called with the same arguments."""

from __future__ import annotations

from typing import Any

import torch

from dsconvert.errors import UsageError
from dsconvert.formats.base import GeneratorFile
from dsconvert.model.inputs import as_args, held_out_inputs, map_tensors


def check_same_inputs(first: GeneratorFile, second: GeneratorFile, *, otherwise: str) -> None:
    """Check that the main generators of two files can get the same latents and classes.

    Where nothing says what the inputs of a file look like, nothing is checked.

    Args:
        first: one file.
        second: the other.
        otherwise: what can't be done with the two if they differ; the end of the error message.

    Raises:
        UsageError: they can't.
    """
    one, two = _inputs(first), _inputs(second)
    if one is not None and two is not None and one != two:
        raise UsageError(
            f"{first.path} takes inputs of shape {_said(one)} and {second.path} of shape "
            f"{_said(two)}: {otherwise}."
        )


def _inputs(file: GeneratorFile) -> list[Any] | None:
    """Return the shape of each argument without the batch, and other arguments as they are."""
    sampler = file.inputs()
    if sampler is None:
        return None
    arguments = as_args(held_out_inputs(sampler)(1, torch.Generator().manual_seed(0)))
    return [map_tensors(lambda t: list(t.shape[1:]), a) for a in arguments]


def _said(inputs: list[Any]) -> str:
    return " and ".join(map(str, inputs))
