"""The arguments of a generator's call: random samples, on its device and in its dtype."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import Adapter, adapter_for
from dsconvert.config.choices import Values
from dsconvert.errors import AdapterError, UsageError

Inputs = Callable[[int, torch.Generator], tuple[Any, ...]]
"""``inputs(n, generator)`` returns the positional arguments of one forward call, batch n.

A tensor or a mapping by itself is the only argument (:func:`as_args`).
"""
GIVE_INPUTS = "pass inputs=callable (in a command --input, or --calibration FILE.npz)"
"""The remedy where nothing says what the inputs look like."""


def map_tensors(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """Return ``value`` with every tensor replaced, also in lists, tuples and dictionaries."""
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
    """Return the tensors in ``value``, in the order of a traced graph's inputs."""
    found: list[torch.Tensor] = []
    map_tensors(lambda t: (found.append(t), t)[1], value)
    return found


def as_args(sample: Any) -> tuple[Any, ...]:
    """Return the positional arguments of one call, as a sampler or ``example_inputs`` gives them.

    A tensor or a mapping by itself is the only argument: a tensor is also a sequence, of samples
    without a batch, and a network of convolutions runs on these, too.

    Raises:
        UsageError: it is no sequence either.
    """
    if isinstance(sample, Tensor | Mapping):
        return (sample,)
    if not isinstance(sample, Iterable):
        raise UsageError(
            f"inputs gives a {type(sample).__name__} for one call; give a tuple of its arguments, "
            "by position."
        )
    return tuple(sample)


def checked(inputs: Inputs) -> Inputs:
    """Return ``inputs``, a caller's own sampler.

    Only its signature is read, so that an error from within it stays what it is.

    Raises:
        UsageError: it can't be called with a batch size and a generator.
    """
    wrong = f"is a {type(inputs).__name__}"
    if callable(inputs):
        try:
            signature = inspect.signature(inputs)
        except (TypeError, ValueError):  # not every builtin tells it
            return inputs
        try:
            signature.bind(1, None)
        except TypeError:
            wrong = f"takes {signature}"
        else:
            return inputs
    raise UsageError(
        f"inputs {wrong}, but is called as inputs(n, generator), and returns the arguments of one "
        "call with batch n, drawn by that generator. For example: inputs=lambda n, generator: "
        "(torch.randn(n, 64, generator=generator),)."
    )


def fresh_args(args: Any) -> Any:
    """Return the arguments of a call with copies of their tensors.

    For arguments that are used again: a model's ``forward`` may write into them.
    """
    return map_tensors(torch.clone, args)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the parameters; the CPU without any."""
    tensor = next(model.parameters(), None)
    return tensor.device if tensor is not None else torch.device("cpu")


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the dtype of the first floating-point parameter; float32 without any."""
    tensor = next((p for p in model.parameters() if p.is_floating_point()), None)
    return tensor.dtype if tensor is not None else torch.float32


def like(sample: Any, model: nn.Module) -> tuple[Any, ...]:
    """Return the arguments of one call on the model's device, floating-point tensors in its dtype.

    They are copies: a sampler may return its own tensors, and a model may write into its arguments.

    Args:
        sample: see :func:`as_args`.
        model: whose device and dtype.
    """
    device, dtype = device_of(model), dtype_of(model)
    return map_tensors(
        lambda a: a.to(device, dtype if a.is_floating_point() else a.dtype, copy=True),
        as_args(sample),
    )


@dataclass(frozen=True)
class RandomPixels:
    """Random values in place of pictures or sounds: for shapes and times alone.

    Nothing is fitted to them, and nothing is compared by them.
    """

    sampler: Inputs
    sounds: bool = False
    """Whether they stand for spectrograms."""

    def __call__(self, n: int, generator: torch.Generator) -> tuple[Any, ...]:
        """Return the arguments of one forward call, batch n."""
        return self.sampler(n, generator)


def adapter_inputs(adapter: Adapter, model: nn.Module) -> Inputs:
    """Return the adapter's sampler for ``model``, marked where it has to stand in for pictures."""
    found = adapter.sampler(model)
    if adapter.sounds(model) is not None:
        return RandomPixels(found, sounds=True)
    return found if adapter.pictures(model) is None else RandomPixels(found)


def needs_pictures(subject: str, sampler: Inputs | None) -> str:
    """Return the message for a generator (``subject``) that reads pictures, if none are given.

    ``sampler`` is its own, which tells sounds from pictures.
    """
    if isinstance(sampler, RandomPixels) and sampler.sounds:
        return (
            f"{subject} reads mel spectrograms, and none are given: add --calibration DIR|ZIP, of "
            "20 .wav files or more (in Python inputs=dsconvert.data.mel_inputs.mel_inputs(...))"
        )
    return (
        f"{subject} reads pictures, and none are given: add --calibration DIR|ZIP, of 20 pictures "
        "or more (in Python inputs=dsconvert.picture_inputs(FOLDER))"
    )


def needs_pictures_to_fit(model: nn.Module, sampler: Inputs | None) -> str:
    """Return the message for a conversion of ``model``, which needs pictures that are not given."""
    needed = needs_pictures(f"this {type(model).__name__}", sampler)
    return (
        f"{needed}; or convert by its kernels alone, with "
        "--init svd --calibrate 0 (in Python init='svd', calibrate=0)."
    )


def held_out_inputs(inputs: Inputs) -> Inputs:
    """Return the sampler of the inputs that only judge.

    Where a sampler has an attribute ``held_out``, a sampler too, the fit never sees its inputs.
    Other samplers draw new latents in each call, and judge as they are.
    """
    return getattr(inputs, "held_out", inputs)


def values_of(inputs: Inputs | None) -> Values | None:
    """Return the range of the pictures that ``inputs`` draws; None where it draws none."""
    return getattr(inputs, "values", None)


def resolved_sampler(
    model: nn.Module, inputs: Inputs | None, adapter: Adapter | None
) -> Inputs | None:
    """Return the caller's own sampler (:func:`checked`), the adapter's, or None."""
    if inputs is not None:
        return checked(inputs)
    return adapter_inputs(adapter, model) if adapter is not None else None


def sampler_of(model: nn.Module) -> Inputs:
    """Return the sampler of the installed adapter that knows ``model``.

    Raises:
        AdapterError: no installed adapter knows the model.
    """
    adapter = adapter_for(model)
    if adapter is None:
        raise AdapterError(f"no installed adapter knows {type(model).__name__}; {GIVE_INPUTS}.")
    return adapter_inputs(adapter, model)


def examples_for(
    model: nn.Module,
    example_inputs: Sequence[Any] | None,
    inputs: Inputs | None,
    adapter: Adapter | None,
) -> tuple[Any, ...] | None:
    """Return arguments of one call with batch 1, given or sampled; None if both are missing."""
    if example_inputs is not None:
        return as_args(example_inputs)
    sampler = resolved_sampler(model, inputs, adapter)
    if sampler is None:
        return None
    return like(sampler(1, torch.Generator().manual_seed(0)), model)


def examples_of(
    model: nn.Module,
    inputs: Inputs | None = None,
    *,
    n: int = 1,
    seed: int = 0,
    adapter: Adapter | None = None,
) -> tuple[Any, ...]:
    """Return arguments of one call with batch n, in the model's dtype and on its device.

    Args:
        model: whose arguments.
        inputs: the caller's sampler; None: the adapter's.
        n: batch size.
        seed: of the sampler.
        adapter: the model's adapter; None: the installed one that knows the model.

    Raises:
        UsageError: no adapter knows the model, and ``inputs`` is not given, or of another form.
    """
    known = adapter_for(model) if adapter is None and inputs is None else adapter
    sampler = resolved_sampler(model, inputs, known)
    if sampler is None:
        raise UsageError(f"no installed adapter knows {type(model).__name__}; {GIVE_INPUTS}.")
    return like(sampler(n, torch.Generator().manual_seed(seed)), model)
