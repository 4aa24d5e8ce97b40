"""What a generator is called with: given by the caller, or known to its adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import adapter_for
from dsconvert.errors import UsageError

Inputs = Callable[[int, torch.Generator], tuple[Any, ...]]
"""``inputs(n, generator)`` returns the positional arguments of one forward call, batch n."""


def examples_of(
    model: nn.Module, inputs: Inputs | None = None, *, n: int = 1, seed: int = 0
) -> tuple[Any, ...]:
    """Arguments of one call with batch n, in the model's dtype and on its device.

    Raises:
        UsageError: no adapter knows the model, and ``inputs`` is not given.
    """
    adapter = adapter_for(model)
    sampler = inputs or (adapter.sampler(model) if adapter else None)
    if sampler is None:
        raise UsageError(
            f"no installed adapter knows {type(model).__name__}; pass inputs, a function "
            "(n, generator) -> arguments of one call."
        )
    sample = sampler(n, torch.Generator().manual_seed(seed))
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is None:
        return sample
    return tuple(
        a.to(like.device, like.dtype if a.is_floating_point() else None)
        if isinstance(a, Tensor)
        else a
        for a in sample
    )
