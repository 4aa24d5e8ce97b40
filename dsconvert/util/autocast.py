"""The type of autocast, for backward passes of our own, which repeat work of the forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def is_mixed(kind: str) -> bool:
    """Return whether autocast is on for a type of device; some have none."""
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def mixed_type(x: Tensor) -> torch.dtype | None:
    """Return the type that autocast now chooses on the device of ``x``; None: it is off."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if is_mixed(kind) else None


def in_mixed_type(x: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return a context with what :func:`mixed_type` found, on the device of ``x``."""
    return nullcontext() if dtype is None else torch.autocast(x.device.type, dtype)
