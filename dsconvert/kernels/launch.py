"""Launch the Triton programs on tensors, and add what they sum tile by tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsconvert.kernels.geometry import (
    Geometry,
    Tile,
    format_of,
    geometry_of,
    laid_out,
    size_of,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """What is in front of normalisation and gate: ``filter(x) + bias + noise * plane``.

    Attributes:
        x: (N, I, H, W).
        weight: filters (C, R, 3, 3), or (C, R, 4, 4) of a transposed convolution that doubles the
            size; None: no filter. Output c sums the inputs ``c // M * R + r``; R or M = C R / I is
            1.
        bias: (C,).
        noise: the weight of the noise, one number or C.
        plane: (N or 1, 1, H', W'), of the output's size.
        gate: whether a gate follows.
    """

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None = None
    noise: Tensor | None = None
    plane: Tensor | None = None
    gate: bool = False

    @property
    def geometry(self) -> Geometry:
        """Its shapes."""
        return geometry_of(self.x, self.weight, gate=self.gate)

    def empty(self, channels: int) -> Tensor:
        """Return an unset map of the output's size, in the layout of x."""
        shape = (self.x.shape[0], channels, *size_of(self.x, self.weight))
        return laid_out_like(self.x, shape)


def laid_out_like(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return an unset map in the type and layout of x."""
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=format_of(x))


class _Launch:
    """Arguments that all programs take."""

    def __init__(self, source: Source, tile: Tile, channels: int) -> None:
        import triton.language as tl

        language: Any = tl
        self.geometry = g = source.geometry
        pixels, columns, together = tile.shape(g, channels)
        rows = pixels // columns
        self.tiles = -(-g.height // rows) * -(-g.width // columns)
        self.grid = (g.samples * self.tiles * -(-channels // together),)
        self.x = laid_out(source.x, source.x)
        self.constants = {
            "R": g.rank, "M": g.multiplier, "KIND": g.kind, "LAST": g.last,
            "ACC": language.float64 if self.x.dtype == torch.float64 else language.float32,
            "BP": pixels, "BX": columns, "BC": together,
            # Without a filter no load is shifted.
            "ALIGNED": (tile.aligned or g.kind == 0) and g.width % 16 == 0, "num_warps": tile.warps,
        }  # fmt: skip
        self.filter = (whole(source.weight), whole(source.bias))
        noise, plane = whole(source.noise), whole(source.plane)
        self.noise = (noise, plane)
        self.noise_c = 0 if noise is None or noise.numel() == 1 else 1
        self.plane_n = 0 if plane is None or len(plane) == 1 else plane[0].numel()
        self.sums = torch.float64 if self.x.dtype == torch.float64 else torch.float32

    def partial(self, *shape: int) -> Tensor:
        """Return an unset tensor with one entry a tile of each sample."""
        tiles = self.geometry.samples * self.tiles
        return torch.empty((tiles, *shape), dtype=self.sums, device=self.x.device)

    def run(self, program: Any, *args: Any, **constants: Any) -> None:
        """Launch."""
        with torch.cuda.device_of(self.x):
            program[self.grid](*args, **constants, **self.constants)


def whole(t: Tensor | None) -> Tensor | None:
    """Return t contiguous."""
    return None if t is None else t.contiguous()


def _stride(t: Tensor | None) -> int:
    """Return the distance of two samples' numbers (C,) or (N, C)."""
    return 0 if t is None or t.dim() == 1 else t.shape[1]


def forward(source: Source, scale: Tensor | None, shift: Tensor | None, tile: Tile) -> Tensor:
    """Return ``gate(scale * u + shift)``; scale and shift are (C,) or (N, C)."""
    from dsconvert.kernels import forward_programs

    g = source.geometry
    call, out = _Launch(source, tile, g.outputs), source.empty(g.outputs)
    call.run(
        forward_programs.forward, call.x, *call.filter, *call.noise, whole(scale), whole(shift),
        out, g.inputs, g.channels, g.outputs, g.height, g.width, call.tiles, call.noise_c,
        call.plane_n, _stride(shift if scale is None else scale), GATE=source.gate,
    )  # fmt: skip
    return out


def statistics(source: Source, tile: Tile) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance (C,) of u over samples and pixels."""
    from dsconvert.kernels import forward_programs

    g = source.geometry
    call = _Launch(source, tile, g.channels)
    found = call.partial(3, g.channels)
    call.run(
        forward_programs.statistics, call.x, *call.filter, *call.noise, found, g.inputs, g.channels,
        g.height, g.width, call.tiles, call.noise_c, call.plane_n,
    )  # fmt: skip
    count, sums, squares = found.double().unbind(1)
    number = count.sum(0)
    mean = sums.sum(0) / number
    between = count * (sums / count.clamp_min(1) - mean).square()
    var = (squares.sum(0) + between.sum(0)) / number
    return mean.to(call.sums), var.to(call.sums)


@dataclass(frozen=True, kw_only=True, eq=False)
class Normal:
    """``gain * (u - mean) * rstd + shift``: mean and rstd (C,), gain and shift (C,) or (N, C)."""

    mean: Tensor | None = None
    rstd: Tensor | None = None
    gain: Tensor | None = None
    shift: Tensor | None = None

    @property
    def stride(self) -> int:
        """The distance of two samples' gains."""
        return _stride(self.shift if self.gain is None else self.gain)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return them, contiguous."""
        return whole(self.mean), whole(self.rstd), whole(self.gain), whole(self.shift)


def sums(source: Source, normal: Normal, grad: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """Return the sums (N, C) over pixels of d and d n; see ``backward_programs``."""
    from dsconvert.kernels import backward_programs

    g = source.geometry
    call = _Launch(source, tile, g.outputs)
    found = call.partial(2, g.channels)
    call.run(
        backward_programs.sums, call.x, *call.filter, *call.noise, *normal.tensors(),
        laid_out(grad, source.x), found, g.inputs, g.channels, g.outputs, g.height, g.width,
        call.tiles, call.noise_c, call.plane_n, normal.stride, GATE=source.gate,
    )  # fmt: skip
    one, two = found.view(g.samples, call.tiles, 2, g.channels).sum(1).unbind(1)
    return one, two


def gradient(
    source: Source,
    normal: Normal,
    k1: Tensor | None,
    k2: Tensor | None,
    grad: Tensor,
    tile: Tile,
    *,
    of_noise: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of u, and (``of_noise``) its sums (C,) with the plane."""
    from dsconvert.kernels import backward_programs

    g = source.geometry
    call, made = _Launch(source, tile, g.outputs), source.empty(g.channels)
    found = call.partial(g.channels) if of_noise else None
    call.run(
        backward_programs.gradient, call.x, *call.filter, *call.noise, *normal.tensors(), whole(k1),
        whole(k2), laid_out(grad, source.x), made, found, g.inputs, g.channels, g.outputs, g.height,
        g.width, call.tiles, call.noise_c, call.plane_n, normal.stride, GATE=source.gate,
    )  # fmt: skip
    return made, None if found is None else found.sum(0)


def filter_gradients(
    x: Tensor, weight: Tensor, grad: Tensor, tile: Tile, *, of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and of the filters (C, R, k, k), in float32 or float64."""
    from dsconvert.kernels import backward_programs

    source = Source(x=x, weight=weight)
    g = source.geometry
    call = _Launch(source, tile, g.inputs)
    made = laid_out_like(x, tuple(x.shape)) if of_x else None
    found = call.partial(g.inputs, g.multiplier, g.taps) if of_weight else None
    call.run(
        backward_programs.filter_gradients, call.x, call.filter[0], laid_out(grad, x), made, found,
        g.inputs, g.channels, g.height, g.width, call.tiles,
    )  # fmt: skip
    if found is None:
        return made, None
    # One of R and M is 1: (I, M) and (C, R) are the same order.
    return made, found.sum(0).view(weight.shape)
