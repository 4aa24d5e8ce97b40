"""Launch the Triton programs on tensors, and add what they sum group by group."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsconvert.kernels.geometry import (
    Geometry,
    Tile,
    format_of,
    geometry_of,
    power_of_two,
    size_of,
)

PROGRAMS = 4096
"""Of a launch that sums; several times as many as a card runs at a time, so that all of it works
to the end. Where there are more tiles, each program takes several."""
MOST_TILES = 32
"""Of a program that sums: its rounding grows with them."""
SUMMED = 2
"""Numbers that a thread of the programs with most sums makes at a time: it keeps up to 16 of each
number. With 2 a card's multiprocessor holds 16 groups of 32 threads."""


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

    @functools.cached_property
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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """How a program runs on a geometry.

    Attributes:
        steps: tiles of a program.
        groups: programs of a sample and a block of channels.
        grid: all programs.
        constants: of the program.
    """

    steps: int
    groups: int
    grid: tuple[int]
    constants: dict[str, Any]


@functools.lru_cache(maxsize=4096)
def _plan(
    g: Geometry, tile: Tile, channels: int, dtype: torch.dtype, sums: bool, most: int
) -> _Plan:
    """Return the plan of a program that makes maps of so many channels.

    Args:
        g: the geometry.
        tile: the tile.
        channels: of the map.
        dtype: of the maps.
        sums: whether it sums.
        most: numbers of a thread.
    """
    import triton.language as tl

    language: Any = tl
    pixels, columns, together = tile.shape(g, channels, most=most)
    rows = pixels // columns
    tiles = -(-g.height // rows) * -(-g.width // columns)
    beside = g.samples * -(-channels // together)
    steps = max(1, min(MOST_TILES, beside * tiles // PROGRAMS, tiles)) if sums else 1
    groups = -(-tiles // steps)
    constants = {
        "R": g.rank, "M": g.multiplier, "KIND": g.kind, "LAST": g.last,
        "ACC": language.float64 if dtype == torch.float64 else language.float32,
        "BP": pixels, "BX": columns, "BC": together,
        # Without a filter no load is shifted.
        "ALIGNED": (tile.aligned or g.kind == 0) and g.width % 16 == 0,
        "EVEN": g.last and not any(c % 2 for c in (g.inputs, g.channels, g.outputs)),
        "num_warps": tile.warps,
    }  # fmt: skip
    return _Plan(steps=steps, groups=groups, grid=(beside * groups,), constants=constants)


class _Launch:
    """Arguments that all programs take."""

    def __init__(
        self, source: Source, tile: Tile, channels: int, *, sums: bool = True, most: int = 1 << 20
    ) -> None:
        self.geometry = g = source.geometry
        self.form = torch.channels_last if g.last else torch.contiguous_format
        self.x = x = source.x
        self.plan = _plan(g, tile, channels, x.dtype, sums, most)
        self.filter = (self._filters(source.weight), whole(source.bias))
        noise, plane = whole(source.noise), whole(source.plane)
        self.noise = (noise, plane)
        self.noise_c = 0 if noise is None or noise.numel() == 1 else 1
        self.plane_n = 0 if plane is None or plane.shape[0] == 1 else 1
        self.sums = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.parts = g.samples * self.plan.groups

    def _filters(self, weight: Tensor | None) -> Tensor | None:
        """Return filters (C, R, k, k) in the order in which a program reads them."""
        if weight is None or not self.geometry.last:
            return whole(weight)
        return weight.permute(2, 3, 1, 0).contiguous()

    def map(self, x: Tensor) -> Tensor:
        """Return x in the layout of the maps."""
        return x.contiguous(memory_format=self.form)

    def partial(self, *shape: int) -> Tensor:
        """Return an unset tensor of sums."""
        return torch.empty(shape, dtype=self.sums, device=self.x.device)

    def run(self, program: Any, *args: Any, **constants: Any) -> None:
        """Launch."""
        launched(self.x, program, self.plan.grid, args, constants | self.plan.constants)


def launched(
    x: Tensor, program: Any, grid: tuple[int], args: tuple[Any, ...], constants: dict[str, Any]
) -> None:
    """Launch a program on the device of x."""
    if not x.is_cuda or x.get_device() == torch.cuda.current_device():
        program[grid](*args, **constants)
        return
    with torch.cuda.device_of(x):
        program[grid](*args, **constants)


def whole(t: Tensor | None) -> Tensor | None:
    """Return t contiguous."""
    return None if t is None else t.contiguous()


def _each(t: Tensor | None) -> int:
    """Return 1 where each sample has numbers (N, C) of its own, and 0 where they share (C,)."""
    return 0 if t is None or t.dim() == 1 else 1


def forward(source: Source, scale: Tensor | None, shift: Tensor | None, tile: Tile) -> Tensor:
    """Return ``gate(scale * u + shift)``; scale and shift are (C,) or (N, C)."""
    from dsconvert.kernels.forward_programs import forward as program

    g = source.geometry
    call, out = _Launch(source, tile, g.outputs, sums=False), source.empty(g.outputs)
    call.run(
        program, call.map(call.x), *call.filter, *call.noise, whole(scale), whole(shift), out,
        g.inputs, g.channels, g.outputs, g.height, g.width, call.plan.groups, call.noise_c,
        call.plane_n, _each(shift if scale is None else scale), GATE=source.gate,
    )  # fmt: skip
    return out


def statistics(source: Source, tile: Tile) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance (C,) of u over samples and pixels."""
    from dsconvert.kernels import forward_programs

    g = source.geometry
    call = _Launch(source, tile, g.channels)
    found = call.partial(3, call.parts, g.channels)
    mean, var = call.partial(g.channels), call.partial(g.channels)
    call.run(
        forward_programs.statistics, call.map(call.x), *call.filter, *call.noise, found, g.inputs,
        g.channels, g.height, g.width, call.plan.steps, call.plan.groups, call.noise_c,
        call.plane_n,
    )  # fmt: skip
    together = min(16, power_of_two(g.channels))
    constants = {"BP": 64, "BC": together, "ACC": call.plan.constants["ACC"]}
    grid = (-(-g.channels // together),)
    args = (found, mean, var, call.parts, g.channels)
    launched(call.x, forward_programs.merged, grid, args, constants)
    return mean, var


@dataclass(frozen=True, kw_only=True, eq=False)
class Normal:
    """``gain * (u - mean) * rstd + shift``: mean and rstd (C,), gain and shift (C,) or (N, C)."""

    mean: Tensor | None = None
    rstd: Tensor | None = None
    gain: Tensor | None = None
    shift: Tensor | None = None

    @property
    def each(self) -> int:
        """Whether each sample has its gains: 1 or 0."""
        return _each(self.shift if self.gain is None else self.gain)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return them, contiguous."""
        return whole(self.mean), whole(self.rstd), whole(self.gain), whole(self.shift)


def sums(source: Source, normal: Normal, grad: Tensor, tile: Tile) -> Tensor:
    """Return the sums of d and of d n over pixels, (2, N, C); see ``backward_programs``.

    Where all samples share gain and shift, over samples as well: (2, 1, C).
    """
    from dsconvert.kernels import backward_programs

    g = source.geometry
    call = _Launch(source, tile, g.outputs, most=SUMMED)
    found = call.partial(2, call.parts, g.channels)
    call.run(
        backward_programs.sums, call.map(call.x), *call.filter, *call.noise, *normal.tensors(),
        call.map(grad), found, g.inputs, g.channels, g.outputs, g.height, g.width, call.plan.steps,
        call.plan.groups, call.noise_c, call.plane_n, normal.each, GATE=source.gate,
    )  # fmt: skip
    return found.view(2, g.samples if normal.each else 1, -1, g.channels).sum(2)


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
    """Return the gradient of u, and (``of_noise``) its sum with the plane, one number or C."""
    from dsconvert.kernels import backward_programs

    g = source.geometry
    call = _Launch(source, tile, g.outputs, sums=False)
    made = source.empty(g.channels)
    found = call.partial(call.parts, g.channels) if of_noise else None
    call.run(
        backward_programs.gradient, call.map(call.x), *call.filter, *call.noise, *normal.tensors(),
        whole(k1), whole(k2), call.map(grad), made, found, g.inputs, g.channels, g.outputs,
        g.height, g.width, call.plan.groups, call.noise_c, call.plane_n, normal.each,
        GATE=source.gate,
    )  # fmt: skip
    if found is None:
        return made, None
    return made, found.sum(0) if call.noise_c else found.sum().view(1)


def filter_gradients(
    x: Tensor, weight: Tensor, grad: Tensor, tile: Tile, *, of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and of the filters (C, R, k, k), in float32 or float64."""
    from dsconvert.kernels.filter_programs import filter_gradients as program

    source = Source(x=x, weight=weight)
    g = source.geometry
    if g.multiplier > 1 and of_x and of_weight:
        of, _ = filter_gradients(x, weight, grad, tile, of_x=True, of_weight=False)
        return of, filter_gradients(x, weight, grad, tile, of_x=False, of_weight=True)[1]
    units = max(g.inputs, g.channels) if of_weight else g.inputs
    call = _Launch(source, tile, units, sums=of_weight, most=SUMMED)
    made = laid_out_like(x, tuple(x.shape)) if of_x else None
    shape = (call.parts, g.taps, units) if g.last else (call.parts, units, g.taps)
    found = call.partial(*shape) if of_weight else None
    call.run(
        program, call.map(x), call.filter[0], call.map(grad), made, found, g.inputs, g.channels,
        g.height, g.width, call.plan.steps, call.plan.groups,
    )  # fmt: skip
    if found is None:
        return made, None
    total = found.sum(0)
    return made, (total.t() if g.last else total).reshape(weight.shape)
