"""The gradients of a phase between the backward pass and the optimiser are made finite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

LARGEST = 1e5
"""Replaces an infinity, as in the official code."""


def make_finite(gradients: Iterable[Tensor]) -> None:
    """Replace what is not finite, in place: an infinity in one gradient must not end the run."""
    for grad in gradients:
        torch.nan_to_num(grad, nan=0.0, posinf=LARGEST, neginf=-LARGEST, out=grad)


def finite_gradients(parameters: Sequence[nn.Parameter], device: torch.device) -> None:
    """Make the gradients of parameters finite; those without one are left out.

    On a GPU the gradients become views of one buffer: one launch, instead of one for each.
    """
    given = [p for p in parameters if p.grad is not None]
    if device.type == "cpu":
        make_finite(p.grad for p in given if p.grad is not None)
        return
    by_type: dict[torch.dtype, list[nn.Parameter]] = {}
    for p in given:
        by_type.setdefault(p.dtype, []).append(p)
    for group in by_type.values():
        make_finite([_flatten(group)])


def _flatten(parameters: list[nn.Parameter]) -> Tensor:
    """Make the gradients views of one buffer, which is returned."""
    # Odd sizes last, so that the others stay aligned for an optimiser's wide loads.
    ordered = sorted(parameters, key=lambda p: p.numel() % 4 != 0)
    rows = [_in_rows(p.grad) for p in ordered if p.grad is not None]
    flat = torch.cat([r.flatten() for r, _ in rows])
    at = 0
    for p, (row, last) in zip(ordered, rows, strict=True):
        view = flat[at : at + row.numel()].view(row.shape)
        p.grad = view.permute(0, 3, 1, 2) if last else view
        at += row.numel()
    return flat


def _in_rows(grad: Tensor) -> tuple[Tensor, bool]:
    """Return a gradient in the order of its memory, and whether that is channels last."""
    if grad.dim() == 4 and not grad.is_contiguous():
        return grad.permute(0, 2, 3, 1), True
    return grad, False
