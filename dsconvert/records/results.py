"""What a conversion or an export came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dsconvert.config.choices import Noise
from dsconvert.records.plan import Plan

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well one rewritten convolution reproduces the original's output.

    ``svd`` and ``fitted`` are relative errors ``||y - y'||^2 / ||y - mean||^2`` of the
    convolution's output on held-out inputs, after the per-channel affine that the following
    batch normalisation undoes (if there is one); ``residual`` is the energy that the SVD leaves
    in the kernel. None where that was not measured.
    """

    site: str
    rank: int
    residual: float | None
    svd: float | None
    fitted: float | None
    method: str
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """Parameters and MACs (one sample) that belong to one named module, children included."""

    name: str
    type: str
    params: int
    macs: int | None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model costs: ``macs`` are counted by fvcore for one sample (not 'FLOPs')."""

    params: int
    macs: int | None
    layers: tuple[LayerCost, ...]
    unsupported: dict[str, int] = field(default_factory=dict)
    """Operators that fvcore has no count for, with the number of calls."""
    uncalled: tuple[str, ...] = ()
    note: str | None = None
    """Why ``macs`` is None, when it is."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A converted model and everything that is known about how it came to be."""

    model: nn.Module
    plan: Plan
    fits: tuple[Fit, ...]
    before: Cost
    after: Cost
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds by stage (trace, factorise, fit, statistics)."""
    psnr: float | None = None
    """Mean PSNR, dB, of the converted model's images to the original's on latents that were held
    out of the fit; None where nothing was fitted, or the output is no image."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """A generator that was written to another format, loaded again and compared."""

    path: str
    format: str
    files: tuple[str, ...]
    bytes: int
    inputs: dict[str, tuple[int | str, ...]]
    """Names of the inputs, in order, with their shapes ("batch" is free)."""
    noise: Noise
    planes: tuple[tuple[str, int, int], ...]
    """Noise injections in execution order: module, height, width. Their planes, row by row, make up
    the input ``noise``."""
    error: float
    """Largest difference of a pixel to the model's image, over all the batches compared."""
    range: float
    """Largest magnitude of a pixel of the model's images."""
    batches: tuple[int, ...]
    """Batch sizes that were compared."""
    seconds: float
