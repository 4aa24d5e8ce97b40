"""The moving average of the generator, which is what a snapshot's ``G_ema`` holds."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn


def ema_beta(*, batch: int, seen: int, half_life: float, rampup: float | None) -> float:
    """How much of the average survives one step of ``batch`` images.

    ``0.5^(batch / h)`` with the half-life h in images, at most ``rampup`` times the images seen
    before the step (Karras et al. 2020, the StyleGAN2-ADA code).
    """
    if rampup is not None:
        half_life = min(half_life, seen * rampup)
    return 0.5 ** (batch / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, beta: float) -> None:
    """Move the average's parameters towards the model's; take over its buffers."""
    mine = [p.detach() for p in average.parameters()]
    theirs = [p.detach() for p in model.parameters()]
    if mine:
        cast("Any", torch)._foreach_lerp_(mine, theirs, 1 - beta)
    for old, new in zip(average.buffers(), model.buffers(), strict=True):
        old.copy_(new)


def same_structure(one: nn.Module, other: nn.Module) -> bool:
    """Whether one can be the moving average of the other: the same tensors, by name and shape."""

    def shapes(model: nn.Module) -> list[tuple[str, torch.Size]]:
        return [(n, t.shape) for n, t in (*model.named_parameters(), *model.named_buffers())]

    return shapes(one) == shapes(other)
