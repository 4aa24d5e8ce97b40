"""Launch the Triton programs on tensors, and add what they sum group by group."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsconvert.kernels import use
from dsconvert.kernels.geometry import (
    Geometry,
    Tile,
    format_of,
    geometry_of,
    size_of,
)
from dsconvert.kernels.plan import SUMMED, plan_of


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


class _Launch:
    """Arguments that all programs take."""

    def __init__(
        self, source: Source, tile: Tile, channels: int, *, sums: bool = True, most: int = 1 << 20
    ) -> None:
        self.geometry = g = source.geometry
        self.form = torch.channels_last if g.last else torch.contiguous_format
        self.x = x = source.x
        self.plan = plan_of(g, tile, channels, x.dtype, sums, most)
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
    """Launch a program on the device of x, or only note the launch."""
    if (jobs := use.jobs()) is not None:
        given = tuple(a.dtype if isinstance(a, Tensor) else a for a in args)
        jobs.append(use.Job(program=program, args=given, constants=constants))
        return
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
    constants = {"BP": 64, "BC": 16, "ACC": call.plan.constants["ACC"]}
    grid = (-(-g.channels // 16),)
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
