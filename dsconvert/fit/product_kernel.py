"""Minimise a quadratic error over kernels that are products of two factors.

For each output ``o`` the kernel is ``k[t, p] = sum_r mix[r, p] filters[r, t]`` and its error is
``k^T Q k - 2 b^T k + c`` with the moments ``Q`` and ``b`` of :mod:`dsconvert.fit.moments`: a
polynomial of degree four in the factors. The outputs are independent, so each has its own
direction (limited-memory BFGS: Nocedal & Wright 2006, algorithm 7.4) and its own exact step: along
a direction the error is a quartic, whose coefficients need two products with ``Q``. The data is
not touched, and no automatic differentiation is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsconvert.fit.moments import Moments
from dsconvert.fit.threads import all_threads

Array = NDArray[np.float64]

_MEMORY = 10
"""Steps that the approximation of the curvature remembers."""
_DOUBLINGS, _REFINEMENTS = 20, 40
"""Bounds of the search for a root of the quartic's derivative."""
_PRECISION = 1e-9
_LEAST_STEP = 1e-12
"""Of the direction; a shorter step is rounding, and its curvature would be as well."""


@dataclass(frozen=True)
class ProductError:
    """The squared error of the kernels, from the moments of all phases.

    Kernels are flat, ``(O, N)``, phase after phase, within a phase in the moments' order.
    ``taps`` are the indices of the kernel's taps in that order.
    """

    blocks: tuple[Tensor, ...]
    linear: Tensor
    constant: Tensor
    taps: tuple[int, ...]
    shared: Tensor | None
    """``(N,)``, for the rank-one term of a constant an output that is free, or None."""

    @classmethod
    def of(cls, stats: tuple[Moments, ...], *, centred: bool) -> ProductError:
        """Return the error; ``centred``: one constant an output is free, equal in all phases."""
        linear = torch.cat([m.xy for m in stats]).t()
        constant = torch.stack([m.yy for m in stats]).sum(0)
        shared = None
        if centred:
            shared = torch.cat([m.x for m in stats]) / len(stats) ** 0.5
            mean = torch.stack([m.y for m in stats]).sum(0) / len(stats) ** 0.5
            linear = linear - torch.outer(mean, shared)
            constant = constant - mean.square()
        return cls(
            tuple(m.xx for m in stats),
            linear.contiguous(),
            constant,
            tuple(t for m in stats for t in m.taps),
            shared,
        )

    def product(self, kernel: Tensor) -> Tensor:
        """Return ``Q kernel`` for each output."""
        parts = kernel.split([len(b) for b in self.blocks], 1)
        with all_threads(len(kernel) * len(self.blocks[0]) ** 2):
            result = torch.cat([p @ b for p, b in zip(parts, self.blocks, strict=True)], 1)
        if self.shared is not None:
            result.addr_(kernel @ self.shared, self.shared, alpha=-1)
        return result

    def value(self, kernel: Tensor, product: Tensor) -> Tensor:
        """Return the error of each output, ``(O,)`` in double precision."""
        form = (kernel * (product - 2 * self.linear)).sum(1, dtype=torch.float64)
        return form + self.constant.double()

    def of_factors(self, mix: Tensor, filters: Tensor) -> float:
        """Return the error of all outputs for mix ``(O, R, P)`` and filters ``(O, R, k^2)``."""
        kernel = _compose(mix, filters[:, :, list(self.taps)])
        return float(self.value(kernel, self.product(kernel)).sum())


def minimise(
    mix: Tensor, filters: Tensor, error: ProductError, *, steps: int
) -> tuple[Tensor, Tensor]:
    """Return mix ``(O, R, P)`` and filters ``(O, R, k^2)`` with a smaller error, from a start.

    No output comes out worse than its start. Taps that no phase reads do not change.
    """
    # Outputs of unit energy: the squares below then stay in range, whatever the activations' size.
    energy = error.constant
    unit = torch.where(energy > 0, energy, torch.ones_like(energy)).sqrt()
    error = replace(error, linear=error.linear / unit[:, None], constant=energy / unit / unit)
    root = unit.sqrt()[:, None, None]
    start_mix, start_filters = mix, filters
    mix, filters = mix / root, filters / root
    order = list(error.taps)
    point = torch.cat([mix, filters[:, :, order]], 2)
    parts = mix.shape[2]
    kernel = _compose(point[:, :, :parts], point[:, :, parts:])
    product = error.product(kernel)
    gradient = _gradient(point, parts, product - error.linear)
    memory: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(steps):
        direction = _direction(gradient, memory)
        slope = _dot(direction, gradient)
        # Where rounding has made it no descent, the gradient is one.
        bad = slope >= 0
        direction = torch.where(bad[:, None, None], -gradient, direction)
        step_mix, step_filters = direction[:, :, :parts], direction[:, :, parts:]
        first = _compose(step_mix, point[:, :, parts:]) + _compose(
            point[:, :, :parts], step_filters
        )
        second = _compose(step_mix, step_filters)
        first_product, second_product = error.product(first), error.product(second)
        rest = product - error.linear
        length = _step_length(
            2 * _rows(first, rest),
            _rows(first, first_product) + 2 * _rows(second, rest),
            2 * _rows(first, second_product),
            _rows(second, second_product),
        ).to(point.dtype)
        moved = point + length[:, None, None] * direction
        product = (
            product + length[:, None] * first_product + length.square()[:, None] * second_product
        )
        after = _gradient(moved, parts, product - error.linear)
        change, bend = moved - point, after - gradient
        curvature = _dot(change, bend)
        memory = [*memory[1 - _MEMORY :], (change, bend, curvature)]
        point, gradient = moved, after
    found = filters.clone()
    found[:, :, order] = point[:, :, parts:]
    made = point[:, :, :parts].contiguous()
    final = _compose(made, point[:, :, parts:])
    better = error.value(final, error.product(final)) < error.value(kernel, error.product(kernel))
    keep = better[:, None, None]
    return (
        torch.where(keep, made * root, start_mix),
        torch.where(keep, found * root, start_filters),
    )


def _compose(mix: Tensor, filters: Tensor) -> Tensor:
    """Return the kernels ``(O, T P)`` of mix ``(O, R, P)`` and filters ``(O, R, T)``."""
    return (filters.transpose(1, 2) @ mix).flatten(1)


def _gradient(point: Tensor, parts: int, rest: Tensor) -> Tensor:
    """Return the gradient for the factors, given half of that for the kernels."""
    mix, filters = point[:, :, :parts], point[:, :, parts:]
    outer = rest.reshape(len(rest), -1, parts)
    return 2 * torch.cat([filters @ outer, mix @ outer.transpose(1, 2)], 2)


def _rows(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1, dtype=torch.float64)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2))


def _direction(gradient: Tensor, memory: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the two-loop recursion of limited-memory BFGS, an output at a time."""
    vector, weights = gradient.clone(), list[Tensor]()
    for change, bend, curvature in reversed(memory):
        # A pair without positive curvature is left out.
        weight = torch.where(curvature > 0, _dot(change, vector) / curvature, 0)
        vector -= weight[:, None, None] * bend
        weights.append(weight)
    if memory:
        _, bend, curvature = memory[-1]
        scale = torch.where(curvature > 0, curvature / _dot(bend, bend), 1)
        vector *= scale[:, None, None]
    for (change, bend, curvature), weight in zip(memory, reversed(weights), strict=True):
        back = torch.where(curvature > 0, _dot(bend, vector) / curvature, 0)
        vector += torch.where(curvature > 0, weight - back, 0)[:, None, None] * change
    return -vector


def _step_length(one: Tensor, two: Tensor, three: Tensor, four: Tensor) -> Tensor:
    """Return the least positive root of the derivative of the quartic with these coefficients."""
    # A few hundred numbers: NumPy's operations on them take a tenth of the time of torch's.
    a, b, c, d = torch.stack([one, 2 * two, 3 * three, 4 * four]).cpu().numpy()
    with np.errstate(all="ignore"):  # of an output that is not finite
        return torch.from_numpy(_least_root(a, b, c, d)).to(one.device)


def _least_root(a: Array, b: Array, c: Array, d: Array) -> Array:
    """Return the least positive root of each ``a + b t + c t^2 + d t^3``, 0 without one.

    It is bracketed by doubling; bisection replaces a step of Newton's method that leaves the
    bracket or does not halve the step before (Press et al., Numerical Recipes, rtsafe).
    """
    low, high = np.zeros_like(a), np.full_like(a, 1e-3)
    for _ in range(_DOUBLINGS):
        falling = a + high * (b + high * (c + high * d)) < 0
        if not falling.any():
            break
        low = np.where(falling, high, low)
        high = np.where(falling, 2 * high, high)
    at, moved = (low + high) / 2, high - low
    for _ in range(_REFINEMENTS):
        value = a + at * (b + at * (c + at * d))
        falling = value < 0
        low, high = np.where(falling, at, low), np.where(falling, high, at)
        newton = at - value / (b + at * (2 * c + at * 3 * d))
        good = (newton >= low) & (newton <= high) & (np.abs(newton - at) <= moved / 2)
        after = np.where(good, newton, (low + high) / 2)
        at, moved = after, np.abs(after - at)
        if not (moved > _PRECISION * at).any():
            break
    return np.where((a < 0) & (at > _LEAST_STEP), at, 0.0)
