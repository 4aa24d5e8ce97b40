"""What a generator is called with: samplers of random inputs, on its device and in its dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from dsconvert.adapter import Adapter, adapter_for
from dsconvert.errors import AdapterError

Inputs = Callable[[int, torch.Generator], tuple[Any, ...]]
"""``inputs(n, generator)`` returns the positional arguments of one forward call, batch n."""


def map_tensors(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """``value`` with every tensor in it, also in lists, tuples and dictionaries, replaced."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, v) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(function, v) for v in value)
    if isinstance(value, dict):
        return type(value)((k, map_tensors(function, v)) for k, v in value.items())
    return value


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in ``value``, in order: what a traced graph takes as its inputs."""
    found: list[torch.Tensor] = []
    map_tensors(lambda t: (found.append(t), t)[1], value)
    return found


def device_of(model: nn.Module) -> torch.device:
    """Where its parameters are; the CPU without any."""
    tensor = next(model.parameters(), None)
    return tensor.device if tensor is not None else torch.device("cpu")


def dtype_of(model: nn.Module) -> torch.dtype:
    """That of its first floating parameter; float32 without any."""
    tensor = next((p for p in model.parameters() if p.is_floating_point()), None)
    return tensor.dtype if tensor is not None else torch.float32


def like(args: tuple[Any, ...], model: nn.Module) -> tuple[Any, ...]:
    """Arguments on the model's device, floating ones in its dtype."""
    device, dtype = device_of(model), dtype_of(model)
    return map_tensors(
        lambda a: a.to(device, dtype) if a.is_floating_point() else a.to(device), args
    )


def resolved_sampler(
    model: nn.Module, inputs: Inputs | None, adapter: Adapter | None
) -> Inputs | None:
    """The caller's own sampler, the adapter's, or None."""
    if inputs is not None:
        return inputs
    return adapter.sampler(model) if adapter is not None else None


def sampler_of(model: nn.Module) -> Inputs:
    """The sampler that the model's adapter knows.

    Raises:
        AdapterError: no installed adapter knows the model.
    """
    adapter = adapter_for(model)
    if adapter is None:
        raise AdapterError(f"no installed adapter knows {type(model).__name__}; pass inputs.")
    return adapter.sampler(model)


def examples_for(
    model: nn.Module,
    example_inputs: Sequence[Any] | None,
    inputs: Inputs | None,
    adapter: Adapter | None,
) -> tuple[Any, ...] | None:
    """Arguments of one call with batch 1: given, or sampled; None where nothing says what."""
    if example_inputs is not None:
        return tuple(example_inputs)
    sampler = resolved_sampler(model, inputs, adapter)
    if sampler is None:
        return None
    return like(sampler(1, torch.Generator().manual_seed(0)), model)
