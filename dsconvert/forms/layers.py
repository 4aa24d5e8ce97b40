"""Modules of a deployed generator that are faster on a CPU than the operators they replace.

Measured on one core (AMD EPYC, AVX-512, torch 2.14): the depthwise ``ConvTranspose2d`` of 128
channels to 256 x 256 takes 66-80 ms, the same as four 2 x 2 depthwise convolutions (one a parity of
the output's row and column) 8 ms; a depthwise 3 x 3 is 3 times faster in ``channels_last``; and a
map above 32 MiB costs more in page faults than in arithmetic, since the C library returns so large
a block to the system each time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dsconvert.forms.packed import PackedLinear
from dsconvert.util.autocast import in_mixed_type, mixed_type

TILE = 4 << 20
"""Bytes of the part of a map that is processed at a time: it fits into a second-level cache slice
and a share of the third level, and is far below 32 MiB, above which memory is mapped again."""


class AddNoise(nn.Module):
    """``x + weight * plane``: x (N, C, H, W), plane (N or 1, 1, H, W), weight one or C numbers."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def scale(self, by: Tensor) -> None:
        """Multiply the added plane by (C,) numbers."""
        scaled = (self.weight.detach().double().reshape(-1) * by).reshape(-1, 1, 1)
        self.weight = nn.Parameter(
            scaled.to(self.weight.device, self.weight.dtype), requires_grad=False
        )

    def forward(self, x: Tensor, plane: Tensor) -> Tensor:
        """Add the plane to every channel."""
        if torch.compiler.is_compiling():  # torch 2.6 can't decompose addcmul for ONNX
            return x + self.weight * plane
        return torch.addcmul(x, self.weight, plane)


def _finish(
    y: Tensor, weight: Tensor | None, plane: Tensor | None, gate: bool, out: Tensor | None = None
) -> Tensor:
    """Apply noise and gate to a map that has no other reader, in place.

    The result is written to ``out``, a part of a larger map, if that is given.
    """
    if weight is not None and plane is not None:
        y = y.addcmul_(weight, plane)
    if out is None:
        return F.glu(y, 1) if gate else y
    return torch.ops.aten.glu.out(y, 1, out=out) if gate else out.copy_(y)


_TAPS = ((3, 1), (2, 0))
"""Kernel rows that even and odd output rows of a k=4, s=2, p=1 transposed convolution see, in order
of the input rows."""


def is_depthwise_upsample(conv: nn.Module) -> bool:
    """Return whether ``conv`` is a depthwise ``ConvTranspose2d(k=4, s=2, p=1)`` (``up-pw-dw``)."""
    return (
        isinstance(conv, nn.ConvTranspose2d)
        and conv.kernel_size == (4, 4)
        and conv.stride == (2, 2)
        and conv.padding == (1, 1)
        and conv.output_padding == (0, 0)
        and conv.dilation == (1, 1)
        and conv.groups == conv.in_channels == conv.out_channels
    )


class UpsampleDepthwise(torch.autograd.Function):
    """A depthwise ``conv_transpose2d(k=4, s=2, p=1)`` for training on a CPU, in `channels_last`.

    Forward: four depthwise 2 x 2 convolutions, see :class:`GatedUpsample`. Backward: the gradient
    of the input is a strided convolution of the gradient by the same kernel, that of the kernel
    comes from the four. Together a quarter of the time of the plain operator's.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        """Upsample x (N, C, H, W) by a kernel (C, 1, 4, 4), bias (C,)."""
        x = x.contiguous(memory_format=torch.channels_last)
        n, c, h, w = x.shape
        ctx.save_for_backward(x, kernel)
        ctx.mixed = mixed_type(x)
        out = torch.empty(
            (n, c, 2 * h, 2 * w), dtype=x.dtype, device=x.device,
            memory_format=torch.channels_last,
        )  # fmt: skip
        for row, rows in enumerate(_TAPS):
            for column, columns in enumerate(_TAPS):
                part = kernel[:, :, rows][:, :, :, columns]
                y = F.conv2d(x, part, bias, padding=1, groups=c)
                out[:, :, row::2, column::2] = y[:, :, row : row + h, column : column + w]
        return out

    @staticmethod
    @once_differentiable  # its wrapper hides the names of the parameters
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """See the class."""
        (grad,) = grads
        x, kernel = ctx.saved_tensors
        c = x.shape[1]
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x = grad_kernel = None
        if ctx.needs_input_grad[0]:
            with in_mixed_type(x, ctx.mixed):
                grad_x = F.conv2d(grad, kernel, None, stride=2, padding=1, groups=c)
        if ctx.needs_input_grad[1]:
            grad_kernel = torch.zeros_like(kernel)
            for row, rows in enumerate(_TAPS):
                for column, columns in enumerate(_TAPS):
                    part = grad[:, :, row::2, column::2]
                    # The row and column that the forward pass has cut off.
                    part = F.pad(part, (column, 1 - column, row, 1 - row))
                    _, found, _ = torch.ops.aten.convolution_backward(
                        part, x, kernel[:, :, rows][:, :, :, columns], None, [1, 1], [1, 1], [1, 1],
                        False, [0, 0], c, [False, True, False],
                    )  # fmt: skip
                    for i, at in enumerate(rows):
                        for j, to in enumerate(columns):
                            grad_kernel[:, :, at, to] = found[:, :, i, j]
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return grad_x, grad_kernel, grad_bias


def upsample_depthwise(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """A depthwise ``conv_transpose2d(k=4, s=2, p=1)``, differentiable, fast on a CPU."""
    if x.device.type == "cpu":
        return UpsampleDepthwise.apply(x, kernel, bias)
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1, groups=x.shape[1])


class GatedUpsample(nn.Module):
    """A depthwise ``ConvTranspose2d(k=4, s=2, p=1)``, then noise and gate: (N, C, H, W) -> 2H, 2W.

    Output row 2i is made of input rows i-1 and i, row 2i+1 of i and i+1: four depthwise 2 x 2
    convolutions of the small map, each writing every other row and column. Gate and noise work on
    each quarter while it is in the cache.
    """

    def __init__(self, conv: nn.ConvTranspose2d, noise: Tensor | None, *, gate: bool) -> None:
        super().__init__()
        self.gate = gate
        self.channels = conv.out_channels
        self.phases = nn.ModuleList()
        for rows in _TAPS:
            for columns in _TAPS:
                part = nn.Conv2d(
                    conv.in_channels, conv.out_channels, 2, padding=1, groups=conv.groups,
                    bias=conv.bias is not None,
                )  # fmt: skip
                kernel = conv.weight.detach()[:, :, rows][:, :, :, columns]
                part.weight = nn.Parameter(kernel.contiguous(), requires_grad=False)
                if conv.bias is not None:
                    part.bias = nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
                self.phases.append(part)
        self.weight = None if noise is None else nn.Parameter(noise, requires_grad=False)

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Return whether ``conv`` is such a convolution."""
        return is_depthwise_upsample(conv)

    def forward(self, x: Tensor, plane: Tensor | None = None) -> Tensor:
        """Upsample x; ``plane`` is (N or 1, 1, 2H, 2W)."""
        n, _, h, w = x.shape
        outputs = self.channels // 2 if self.gate else self.channels
        out = torch.empty(
            (n, outputs, 2 * h, 2 * w), dtype=x.dtype, device=x.device,
            memory_format=torch.channels_last,
        )  # fmt: skip
        for i, phase in enumerate(self.phases):
            row, column = divmod(i, 2)
            y = phase(x)[:, :, row : row + h, column : column + w]
            part = None if plane is None else plane[:, :, row::2, column::2]
            _finish(y, self.weight, part, self.gate, out[:, :, row::2, column::2])
        return out


class GatedPointwise(nn.Module):
    """A 1 x 1 convolution, then noise and gate: (N, I, H, W) -> (N, O or O / 2, H, W).

    A matrix product over the channels of a ``channels_last`` map, some rows at a time.
    """

    def __init__(self, conv: nn.Conv2d, noise: Tensor | None, *, gate: bool) -> None:
        super().__init__()
        self.gate = gate
        bias = None if conv.bias is None else conv.bias.detach().clone()
        self.linear = PackedLinear(conv.weight.detach().flatten(1).clone(), bias)
        self.weight = None if noise is None else nn.Parameter(noise, requires_grad=False)

    def _tile(self, x: Tensor, plane: Tensor | None, out: Tensor | None = None) -> Tensor:
        return _finish(self.linear(x).permute(0, 3, 1, 2), self.weight, plane, self.gate, out)

    def forward(self, x: Tensor, plane: Tensor | None = None) -> Tensor:
        """Mix the channels of x; ``plane`` is (N or 1, 1, H, W)."""
        view = x.permute(0, 2, 3, 1)  # no copy where x is channels_last
        n, h, w, _ = view.shape
        row = n * w * self.linear.out_features * x.element_size()
        rows = max(1, TILE // row)
        if rows >= h:
            return self._tile(view, plane)
        outputs = self.linear.out_features // 2 if self.gate else self.linear.out_features
        out = torch.empty(
            (n, outputs, h, w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
        )
        for top in range(0, h, rows):
            part = None if plane is None else plane[:, :, top : top + rows]
            self._tile(view[:, top : top + rows], part, out[:, :, top : top + rows])
        return out


class FewChannels(nn.Module):
    """A 3 x 3 convolution to a few channels (an image): (N, I, H, W) -> (N, O, H, W).

    One matrix product makes the 9 O partial images of all taps, which are then added with their
    shifts: the general operator is made for many output channels and takes twice the time.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.channels = conv.out_channels
        # (O, I, 3, 3) to (9 O, I): tap by tap
        taps = conv.weight.detach().permute(2, 3, 0, 1).reshape(-1, conv.in_channels)
        self.weight = nn.Parameter(taps.contiguous(), requires_grad=False)
        bias = None if conv.bias is None else conv.bias.detach().clone()
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Return whether ``conv`` is such a convolution."""
        return (
            isinstance(conv, nn.Conv2d)
            and conv.kernel_size == (3, 3)
            and conv.stride == conv.dilation == (1, 1)
            and conv.padding in ((1, 1), "same")
            and conv.padding_mode == "zeros"
            and conv.groups == 1
            and conv.out_channels <= 4
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        n, c, h, w = x.shape
        view = x.permute(0, 2, 3, 1).reshape(n, h * w, c)
        parts = torch.matmul(self.weight, view.transpose(1, 2)).view(n, 9, self.channels, h, w)
        out = parts[:, 4].clone()  # the middle tap covers every pixel
        if self.bias is not None:
            out += self.bias[:, None, None]
        for tap in (0, 1, 2, 3, 5, 6, 7, 8):
            down, right = tap // 3 - 1, tap % 3 - 1
            # The pixel at (y, x) sees that at (y + down, x + right), where there is one.
            rows, from_rows = (
                slice(max(0, -down), h - max(0, down)),
                slice(max(0, down), h + min(0, down)),
            )
            columns, from_columns = (
                slice(max(0, -right), w - max(0, right)),
                slice(max(0, right), w + min(0, right)),
            )
            out[:, :, rows, columns] += parts[:, tap, :, from_rows, from_columns]
        return out
