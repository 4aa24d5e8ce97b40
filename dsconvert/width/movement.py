"""Tensors of labels: an operation that only moves data moves the labels alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dsconvert.width.labels import FIXED, Axis


def label_tensor(shape: Sequence[int], axis: Axis | None) -> Tensor:
    """Return a tensor of ``shape`` that holds each element's label."""
    if axis is None:
        return torch.full(tuple(shape), FIXED, device="cpu")
    view = [1] * len(shape)
    view[axis.dim] = -1
    return torch.from_numpy(axis.labels).reshape(view).expand(tuple(shape))


def axis_of(labels: object) -> Axis | Literal[False] | None:
    """Return the dimension along which labels vary.

    None: nothing in it can be removed. False: they vary along several dimensions.
    """
    if not isinstance(labels, Tensor) or not labels.numel() or bool((labels == FIXED).all()):
        return None
    varying = [d for d in range(labels.ndim) if not bool((labels == labels.narrow(d, 0, 1)).all())]
    if len(varying) > 1:
        return False
    # A single channel varies along no dimension.
    dim = varying[0] if varying else min(1, labels.ndim - 1)
    if dim < 0 or (not varying and labels.shape[dim] != 1):
        return False
    line = labels.movedim(dim, 0).reshape(labels.shape[dim], -1)[:, 0]
    return Axis(dim, line.contiguous().numpy())
