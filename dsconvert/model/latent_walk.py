"""Walks between the arguments of two forward calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dsconvert.model.inputs import map_tensors, tensors_of

_PARALLEL = 1e-4
"""Angle in radians below which a great circle is a line."""


def between(start: tuple[Any, ...], end: tuple[Any, ...], share: float) -> tuple[Any, ...]:
    """Return the arguments at ``share`` (0 to 1) of the way from ``start`` to ``end``.

    Floating-point tensors move along great circles (Shoemake, "Animating rotation with quaternion
    curves", SIGGRAPH 1985), so that normal latents keep their length; those that are equal stay.
    Other tensors and values change at the middle.
    """
    others = iter(tensors_of(end))
    return map_tensors(lambda tensor: _between(tensor, next(others), share), start)


def _between(a: Tensor, b: Tensor, share: float) -> Tensor:
    if not a.is_floating_point() or a.shape != b.shape:
        return a if share < 0.5 else b
    if share <= 0 or torch.equal(a, b):
        return a
    if share >= 1:
        return b
    one, two = a.double(), b.double()
    lengths = one.norm() * two.norm()
    angle = torch.acos(((one * two).sum() / lengths).clamp(-1, 1)) if lengths > 0 else lengths
    if not _PARALLEL < float(angle) < torch.pi - _PARALLEL:
        return torch.lerp(one, two, share).to(a.dtype)
    mixed = torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * two
    return (mixed / torch.sin(angle)).to(a.dtype)


def walk(stops: Sequence[tuple[Any, ...]], *, frames: int, loop: bool) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of each frame of a walk through ``stops`` in their order.

    Args:
        stops: arguments of forward calls; two or more.
        frames: from one stop to the next.
        loop: whether the walk returns to the first stop (which is not repeated at the end).
    """
    ends = [*stops[1:], stops[0]] if loop else stops[1:]
    for start, end in zip(stops, ends, strict=False):
        for i in range(frames):
            yield between(start, end, i / frames)
    if not loop:
        yield stops[-1]


def walk_length(stops: int, *, frames: int, loop: bool) -> int:
    """Return the number of frames of :func:`walk`."""
    return stops * frames if loop else (stops - 1) * frames + 1
