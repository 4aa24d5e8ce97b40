"""Nearest upsampling by 2, as a module and as a function."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from dsconvert.records import Site


def upsample_of(site: Site) -> nn.Module:
    """Return the nearest x2 upsample of a map (N, C, H, W); of one dimension: of the width."""
    return nn.Upsample(scale_factor=2.0 if site.dims == 2 else (1.0, 2.0), mode="nearest")


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
