"""Triton kernels for GPUs, each an operator of torch with gradients and a fallback.

Triton comes with torch's wheels for Linux. It is imported at the first launch; where it is missing,
or slower at a size, torch's own operators do the same.
"""

from __future__ import annotations

from dsconvert.kernels.ahead import compile_ahead
from dsconvert.kernels.depthwise import depthwise, filters_of
from dsconvert.kernels.gated import batch_norm_gate, noise_gate
from dsconvert.kernels.geometry import Tile
from dsconvert.kernels.pointwise import is_pointwise, pointwise
from dsconvert.kernels.use import Event, is_collecting, recording, replayed, takes, using

__all__ = [
    "Event",
    "Tile",
    "batch_norm_gate",
    "compile_ahead",
    "depthwise",
    "filters_of",
    "is_collecting",
    "is_pointwise",
    "noise_gate",
    "pointwise",
    "recording",
    "replayed",
    "takes",
    "using",
]
