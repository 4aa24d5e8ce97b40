"""What a generator is called with: given by the caller, or known to its adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    sample: Any = sampler(n, torch.Generator().manual_seed(seed))
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    args: tuple[Any, ...] = (sample,) if isinstance(sample, Tensor | Mapping) else tuple(sample)
    return args if like is None else tuple(_placed(a, like) for a in args)


def _placed(value: Any, like: Tensor) -> Any:
    """``value`` with its tensors, also those in containers, on the device and in the dtype."""
    if isinstance(value, Tensor):
        return value.to(like.device, like.dtype if value.is_floating_point() else None)
    if isinstance(value, Mapping):
        return {key: _placed(each, like) for key, each in value.items()}
    if isinstance(value, list):
        return [_placed(each, like) for each in value]
    if isinstance(value, tuple):
        parts = [_placed(each, like) for each in value]
        kind: Any = type(value)
        return kind(*parts) if hasattr(kind, "_fields") else tuple(parts)
    return value
