"""Fit without overflow: in float64 where activations are extreme, not at all if not finite.

Least squares works with squares and their sums, which leave the range of float32 long before the
activations themselves do. Activations of a usual size stay in their own type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dsconvert.fit.sample import Sample

LOW, HIGH = 1e-12, 1e12
"""Between these bounds, squares and sums of millions of them are safe in float32."""


class NotFiniteError(ArithmeticError):
    """A system of equations holds values that are not finite."""


def peak(values: Sequence[Tensor]) -> float:
    """Return the largest absolute value; infinite where one is infinite or no number."""
    bounds = [torch.stack(torch.aminmax(v)).double() for v in values if v.numel()]
    if not bounds:
        return 0.0
    # One wait for the device for all of them. A NaN stays one.
    largest = float(torch.stack(bounds).abs().max())
    return largest if math.isfinite(largest) else math.inf


def extreme(reach: float) -> bool:
    """Return whether squares of values of this size are unsafe in float32."""
    return reach != 0.0 and not LOW < reach < HIGH


def widened(values: Sequence[Tensor]) -> list[Tensor]:
    """Return ``values``, in float64 where they are extreme."""
    return [v.double() for v in values] if extreme(peak(values)) else list(values)


def representable(sample: Sample) -> Sample | None:
    """Return ``sample``, in float64 if its values are extreme; None if they are not finite."""
    reach = [peak(v) for v in (sample.inputs, sample.wanted)]
    reach += [peak([v]) for v in (sample.held_input, sample.held_wanted)]
    if not all(math.isfinite(r) for r in reach):
        return None
    return sample.double() if any(extreme(r) for r in reach) else sample


def fit_or_restore(fit: Callable[[], None], module: nn.Module, sample: Sample) -> bool:
    """Run ``fit``, which fits ``module`` to ``sample`` in place.

    Returns:
        False where the equations can't be solved or the result is not finite; ``module`` is then
        restored.
    """
    parameters = list(module.parameters())
    start = [p.detach().clone() for p in parameters]
    kinds = [p.dtype for p in parameters]
    try:
        module.to(sample.held_input.dtype)
        fit()
        done = True
    except (NotFiniteError, torch.linalg.LinAlgError):  # pyright: ignore[reportPrivateImportUsage]
        done = False
    finally:
        for p, kind in zip(parameters, kinds, strict=True):
            p.data = p.data.to(kind)
    done = done and all(bool(p.isfinite().all()) for p in parameters)
    if not done:
        for p, value in zip(parameters, start, strict=True):
            p.copy_(value)
    return done
