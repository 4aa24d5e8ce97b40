"""Copies of many tensors in few launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor


@torch.no_grad()
def copy_tensors(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target."""
    by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        if not target.numel():
            continue
        olds, news = by_type.setdefault(target.dtype, ([], []))
        olds.append(target.detach())
        news.append(source.detach())
    for olds, news in by_type.values():  # only tensors of one type go together
        cast("Any", torch)._foreach_copy_(olds, news)
