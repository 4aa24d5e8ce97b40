"""The moving average of the generator, the ``G_ema`` of a snapshot."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from dsconvert.train.tensors import copy_tensors


def ema_beta(*, batch: int, seen: int, half_life: float, rampup: float | None) -> float:
    """Return the weight of the old average in one step of ``batch`` images.

    ``0.5^(batch / h)`` with the half-life h in images, at most ``rampup`` times the images seen
    before the step (Karras et al. 2020, the StyleGAN2-ADA code).
    """
    if rampup is not None:
        half_life = min(half_life, seen * rampup)
    return 0.5 ** (batch / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, beta: float) -> None:
    """Move the parameters of ``average`` towards those of ``model``; copy the buffers."""
    mine = [p.detach() for p in average.parameters()]
    theirs = [p.detach() for p in model.parameters()]
    if mine:
        cast("Any", torch)._foreach_lerp_(mine, theirs, 1 - beta)
    copy_tensors(list(average.buffers()), list(model.buffers()))


def same_structure(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two models have the same tensors by name and shape, as an average needs."""

    def shapes(model: nn.Module) -> list[tuple[str, torch.Size]]:
        return [(n, t.shape) for n, t in (*model.named_parameters(), *model.named_buffers())]

    return shapes(one) == shapes(other)
