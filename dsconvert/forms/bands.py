"""A convolution in bands that stay in the cache: pointwise, spatial filter, noise and gate.

Each of these steps, done over a whole map, writes the map to memory and reads it again. Here they
run over some rows at a time. A spatial filter with R input channels an output is *one* depthwise
convolution, so that its sum is taken in registers: with the channels of a pixel in the order
(R, O), a row of W pixels with R O channels is the same memory as a row of W R pixels with O
channels, and the sum over R and the columns of the kernel is a row of a kernel of width k R that
moves by R. oneDNN has kernels for depthwise convolutions, but not for groups of R channels: on one
core (Xeon, AVX-512, torch 2.14) this takes a quarter to an eighth of the time of ``groups=O``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert.forms.packed import PackedLinear

BAND = 4 << 20
"""Bytes of the widest map of a band. Smaller ones lose more to calls than the cache gains."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The output rows and columns that one set of kernels makes: ``row::step``, ``column::step``.

    ``above`` and ``left`` are the rows and columns of zeros in front of the first output.
    """

    row: int
    column: int
    step: int
    above: int
    left: int


@dataclass(frozen=True, kw_only=True)
class Window:
    """Input rows ``low:high`` of a band, the padding to add, and the first output row to take."""

    low: int
    high: int
    padding: int
    first: int

    @classmethod
    def of(cls, begin: int, end: int, height: int) -> Window:
        """Return the window for the rows ``begin:end``, of which some may lie outside the map."""
        low, high = max(0, begin), min(height, end)
        padding = max(low - begin, end - high)
        return cls(low=low, high=high, padding=padding, first=padding - (low - begin))


def finish(y: Tensor, out: Tensor, noise: Tensor | None, plane: Tensor | None, gate: bool) -> None:
    """Add ``noise * plane`` to ``y``, gate its channels, and write the result to ``out``.

    ``y`` (N, C, H, W) is overwritten; ``noise`` is (C, 1, 1), ``plane`` (N or 1, 1, H, W).
    """
    if noise is not None and plane is not None:
        y.addcmul_(noise, plane)
    if not gate:
        out.copy_(y)
        return
    value, control = y.chunk(2, 1)
    torch.mul(value, control.sigmoid_(), out=out)


def tiles(n: int, height: int, row_bytes: int, device: torch.device) -> Iterator[tuple[slice, int]]:
    """Yield slices of the batch with the rows to take at a time; a small map is taken whole."""
    if device.type != "cpu":
        yield slice(0, n), height
        return
    many = max(1, min(n, BAND // max(1, row_bytes * height)))
    rows = height if row_bytes * height <= BAND else max(4, BAND // row_bytes)
    for begin in range(0, n, many):
        yield slice(begin, min(n, begin + many)), rows


class BandedConvolution(nn.Module):
    """[Pointwise,] spatial convolution [, pointwise], noise and gate: (N, I, H, W) -> (N, O, ...).

    Args:
        phases: one for a stride of 1, four behind a nearest x2 upsample.
        kernels: for each phase, S kernels of one shape, whose outputs are summed (``back``: mixed).
        groups: of these convolutions.
        front: the matrix (R G, I) of the pointwise convolution in front, its rows in the order
            (R, G); the kernels are then R times as wide.
        repeat: R.
        back: S matrices (O, G) of the pointwise convolution behind.
        bias: (O,), added by the kernels, or by ``back``.
        noise: weights of the noise, one or O.
        gate: whether the first half of the O channels is multiplied by the sigmoid of the second.
    """

    def __init__(
        self,
        *,
        phases: Sequence[Phase],
        kernels: Sequence[Sequence[Tensor]],
        groups: int,
        front: Tensor | None = None,
        repeat: int = 1,
        back: Sequence[Tensor] = (),
        bias: Tensor | None = None,
        noise: Tensor | None = None,
        gate: bool = False,
    ) -> None:
        super().__init__()
        self.phases = tuple(phases)
        self.groups, self.repeat, self.gate = groups, repeat, gate
        self.kernels = nn.ParameterList(_fixed(k) for each in kernels for k in each)
        self.front = None if front is None else PackedLinear(front, None)
        self.back = nn.ModuleList(PackedLinear(matrix, None) for matrix in back)
        self.bias = None if bias is None else _fixed(bias)
        shape = kernels[0][0].shape
        self.outputs: int = back[0].shape[0] if back else shape[0]
        if noise is not None:
            noise = _fixed(noise.reshape(-1, 1, 1).expand(self.outputs, 1, 1))
        self.weight = noise

    def extra_repr(self) -> str:
        """Return the number of phases and summands."""
        return f"phases={len(self.phases)}, repeat={self.repeat}, gate={self.gate}"

    def forward(self, x: Tensor, plane: Tensor | None = None) -> Tensor:
        """Return the map; ``plane`` (N or 1, 1, H', W') is the noise."""
        x = x.contiguous(memory_format=torch.channels_last)
        n, _, h, w = x.shape
        taps, wide = self.kernels[0].shape[-2:]
        step, first = self.phases[0].step, self.phases[0]
        # With one phase the padding decides the size; four phases double it.
        high = h + 2 * first.above - taps + 1 if step == 1 else h
        broad = w + 2 * first.left - wide // self.repeat + 1 if step == 1 else w
        channels = self.outputs // 2 if self.gate else self.outputs
        out = torch.empty(
            (n, channels, high * step, broad * step), dtype=x.dtype, device=x.device,
            memory_format=torch.channels_last,
        )  # fmt: skip
        widest = max(self._inner * self.repeat, self.outputs)
        for part, rows in tiles(n, high, widest * w * x.element_size(), x.device):
            source = _Rows(x[part], self.front, rows + taps + 1)
            noise = None if plane is None else plane[part] if len(plane) > 1 else plane
            for top in range(0, high, rows):
                self._band(source, out[part], noise, top, min(high, top + rows), broad)
        return out

    @property
    def _inner(self) -> int:
        """G, the channels that the spatial convolutions read, without the repetition."""
        if self.front is not None:
            return self.front.out_features // self.repeat
        return self.kernels[0].shape[1] * self.groups

    def _band(
        self, source: _Rows, out: Tensor, plane: Tensor | None, top: int, bottom: int, broad: int
    ) -> None:
        """Make the output rows ``top:bottom``, times the step of the phases."""
        taps = self.kernels[0].shape[-2]
        summands = len(self.kernels) // len(self.phases)
        begin = top - max(p.above for p in self.phases)
        end = bottom + taps - 1 - min(p.above for p in self.phases)
        source.hold(max(0, begin), min(source.height, end))
        for i, phase in enumerate(self.phases):
            window = Window.of(top - phase.above, bottom - phase.above + taps - 1, source.height)
            y = source.rows(window.low, window.high, self.repeat)
            left = max(p.left for p in self.phases)
            at = (slice(None), slice(None), slice(window.first, window.first + bottom - top),
                  slice(left - phase.left, left - phase.left + broad))  # fmt: skip
            made = self._convolved(y, window.padding, left, i * summands, summands, at)
            rows = slice(top * phase.step + phase.row, bottom * phase.step, phase.step)
            columns = slice(phase.column, broad * phase.step, phase.step)
            part = None if plane is None else plane[:, :, rows, columns]
            finish(made, out[:, :, rows, columns], self.weight, part, self.gate)

    def _convolved(
        self, y: Tensor, above: int, left: int, begin: int, summands: int, at: tuple[slice, ...]
    ) -> Tensor:
        """Return the sum over the kernels from ``begin`` on of the convolved, mixed ``y``."""
        padding, stride = (above, left * self.repeat), (1, self.repeat)
        kernels = self.kernels[begin : begin + summands]
        if not self.back:
            made = F.conv2d(y, kernels[0], self.bias, stride, padding, 1, self.groups)
            return made[at]
        # The first kernel's map has the size of the sum.
        shape, total = torch.Size(()), y.new_empty(0)
        for i, kernel in enumerate(kernels):
            matrix: Any = self.back[i]
            made = F.conv2d(y, kernel, None, stride, padding, 1, self.groups)
            flat = made[at].permute(0, 2, 3, 1)
            shape = flat.shape[:3]
            if i == 0:
                total = flat.new_empty((shape.numel(), self.outputs))
                matrix.write(flat.reshape(len(total), -1), total, self.bias)
            else:
                matrix.add(flat.reshape(len(total), -1), total)
        return total.view(*shape, -1).permute(0, 3, 1, 2)


class _Rows:
    """Rows of a map, or of the pointwise convolution of it, of which each row is computed once."""

    def __init__(self, x: Tensor, front: PackedLinear | None, rows: int) -> None:
        self.height = x.shape[2]
        self._x, self._front = x, front
        self._low = self._high = 0
        if front is not None:
            n, _, h, w = x.shape
            # Several samples are held whole; of one sample some rows.
            self._kept = x.new_empty((n, min(h, rows), w, front.out_features))

    def hold(self, low: int, high: int) -> None:
        """Compute the rows ``low:high``, of which earlier ones may be there."""
        if self._front is None or (low >= self._low and high <= self._high):
            return
        keep = max(0, self._high - low)
        if keep:
            begin = low - self._low
            self._kept[:, :keep] = self._kept[:, begin : begin + keep].clone()
        fresh = self._x[:, :, low + keep : high].permute(0, 2, 3, 1).flatten(0, 2)
        self._front.write(fresh, self._kept[:, keep : high - low].view(len(fresh), -1))
        self._low, self._high = low, high

    def rows(self, low: int, high: int, repeat: int) -> Tensor:
        """Return held rows as (N, G, rows, W R)."""
        if self._front is None:
            return self._x[:, :, low:high]
        kept = self._kept[:, low - self._low : high - self._low]
        n, rows, w, c = kept.shape
        return kept.view(n, rows, w * repeat, c // repeat).permute(0, 3, 1, 2)


def _fixed(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)
