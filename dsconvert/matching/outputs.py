"""One call of a generator: its images, and the further numbers that it returns."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import image_tensor
from dsconvert.model.inputs import fresh_args, tensors_of


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The outputs of one call.

    Attributes:
        image: (N, C, H, W).
        others: the other floating-point tensors with N rows, such as a mask beside the picture.
    """

    image: Tensor
    others: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StudentOutput(Outputs):
    """The student's outputs for one batch; ``blocks`` are those of its blocks by name."""

    blocks: dict[str, Tensor]


@contextmanager
def seeded(seed: int) -> Generator[None, None, None]:
    """Seed the draws of the models (noise injection); the caller's random state stays."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def outputs_of(model: nn.Module, args: tuple[Any, ...], seed: int) -> Outputs:
    """Call ``model``, with its draws seeded; ``args`` stay as they are.

    Raises:
        AdapterError: it returns no images.
    """
    with seeded(seed):
        output = model(*fresh_args(args))
    image = image_tensor(output)
    rows = [t for t in tensors_of(output) if t.dim() and len(t) == len(image)]
    others = tuple(t for t in rows if t is not image and t.is_floating_point())
    return Outputs(image=image, others=others)
