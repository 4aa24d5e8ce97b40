"""Sample sheets with fixed latents, so that a run can be watched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import image_tensor
from dsconvert.data.pictures import grid, save_picture
from dsconvert.model.observe import evaluating

NOISE_SEED = 1


@torch.no_grad()
def sample_grid(model: nn.Module, inputs: Sequence[tuple[Any, ...]]) -> Tensor:
    """Images of ``inputs`` (a list of forward arguments), on the CPU; noise is fixed too."""
    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(NOISE_SEED)
        return torch.cat([image_tensor(model(*args)).float().cpu() for args in inputs])


def save_grid(images: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write one sheet, whole or not at all.

    Raises:
        OutputError: the disk refuses.
    """
    save_picture(grid(images), path, overwrite=True)
    return Path(path)
