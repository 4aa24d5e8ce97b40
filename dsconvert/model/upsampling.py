"""Nearest upsampling by 2, as a module, as a function, and folded into a kernel."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from dsconvert.records import Site


def upsample_of(site: Site) -> nn.Module:
    """Return the nearest x2 upsample of a map (N, C, H, W); of one dimension: of the width."""
    return nn.Upsample(scale_factor=2.0 if site.dims == 2 else (1.0, 2.0), mode="nearest")


def before_upsample(site: Site) -> tuple[int, int, int]:
    """Return the shape ``(C, H, W)`` of the site's input, in front of :func:`upsample_of` if any.

    A map of one dimension has height 1. An input of unknown shape counts as one pixel.
    """
    _, channels, height, width = site.input_shape or (1, site.in_channels, 1, 1)
    if site.upsample is None:
        return channels, height, width
    return channels, height if site.dims == 1 else height // 2, width // 2


def nearest_x2(module: nn.Module | None) -> bool:
    """Return whether a module is an ``nn.Upsample`` by 2, mode nearest."""
    return (
        isinstance(module, nn.Upsample)
        and module.mode == "nearest"
        and module.size is None
        and module.scale_factor in (2, 2.0, (2, 2), (2.0, 2.0))
    )


def interpolates_x2(node: Any) -> bool:
    """Return whether a node is ``F.interpolate(x, scale_factor=2, mode="nearest")``."""
    if not isinstance(node, fx.Node) or node.target is not F.interpolate:
        return False
    named = zip(("input", "size", "scale_factor", "mode"), node.args, strict=False)
    given: dict[str, Any] = {**dict(named), **node.kwargs}
    factor: Any = given.get("scale_factor")
    pair: Any = tuple(factor) if isinstance(factor, list | tuple) else (factor, factor)
    return bool(given.get("mode", "nearest") == "nearest" and pair == (2, 2)) and (
        given.get("size") is None
    )


def upsampled(kernel: Tensor) -> Tensor:
    """Fold a nearest x2 upsample into a 3x3, padding-1 kernel ``(..., 3, 3)`` -> ``(..., 4, 4)``.

    Upsample(x2, nearest) then convolution equals one transposed convolution with k=4, stride 2,
    padding 1, whose kernel is the full correlation of the flipped 3x3 kernel with a 2x2 box: each
    input pixel is spread over a 2x2 block, then correlated. Exact, at the borders too. A kernel of
    height 1, of one dimension, is doubled in its width alone: ``(..., 1, 3)`` -> ``(..., 1, 4)``.
    """
    height = kernel.shape[-2]
    rows_down = (0,) if height == 1 else (0, 1)
    out = kernel.new_zeros(*kernel.shape[:-2], height + len(rows_down) - 1, 4)
    # A few rows at a time: the flipped copy of a whole kernel of a large generator is 150 MB.
    for rows, result in zip(kernel.split(64), out.split(64), strict=True):
        flipped = rows.flip(-1, -2)
        for dy in rows_down:
            for dx in (0, 1):
                result[..., dy : dy + height, dx : dx + 3] += flipped
    return out
