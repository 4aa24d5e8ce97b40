"""The gradients of a phase between the backward pass and the optimiser: finite, and averaged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from dsconvert.util.processes import Processes

LARGEST = 1e5
"""Replaces an infinity, as in the official code."""


def make_finite(gradients: Iterable[Tensor]) -> None:
    """Replace what is not finite, in place: an infinity in one gradient must not end the run."""
    for grad in gradients:
        torch.nan_to_num(grad, nan=0.0, posinf=LARGEST, neginf=-LARGEST, out=grad)


def settle_gradients(parameters: Sequence[nn.Parameter], procs: Processes, *, finite: bool) -> None:
    """Average the gradients over the processes, and make them finite.

    On a GPU, and with several processes, the gradients become views of one buffer: one launch, or
    one message, instead of one for each parameter.

    Args:
        parameters: those without a gradient are left out.
        procs: the processes that train together.
        finite: whether to replace what is not finite. (The scaler of fp16 needs to see it, and
            leaves such a step out.)
    """
    given = [p for p in parameters if p.grad is not None]
    if procs.world == 1 and (not finite or procs.device.type == "cpu"):
        if finite:
            make_finite(p.grad for p in given if p.grad is not None)
        return
    by_type: dict[torch.dtype, list[nn.Parameter]] = {}
    for p in given:
        by_type.setdefault(p.dtype, []).append(p)
    for group in by_type.values():
        flat = _flatten(group)
        procs.mean_([flat])
        if finite:
            make_finite([flat])


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
