"""The same operations by torch's own operators: the fallback, and the reference of the tests.

The formulas of gradients are explicit, since autograd does not record inside an operator.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from dsconvert.kernels.launch import Normal, Source


@contextmanager
def as_given(x: Tensor) -> Generator[None, None, None]:
    """Keep autocast from casting inside an operator, as it does not inside a kernel."""
    if not torch.is_autocast_enabled(x.device.type):
        yield
        return
    with torch.autocast(x.device.type, enabled=False):
        yield


def _column(values: Tensor) -> Tensor:
    """Reshape numbers (C,) or (N, C) to (1 or N, C, 1, 1)."""
    return values[None, :, None, None] if values.dim() == 1 else values[:, :, None, None]


def _channels(values: Tensor | None) -> Tensor | None:
    """Reshape one number or C to (1, C, 1, 1)."""
    return None if values is None else values.reshape(1, -1, 1, 1)


def filtered(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the depthwise convolution of x; see :class:`dsconvert.kernels.launch.Source`."""
    groups = x.shape[1] // weight.shape[1]
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    if weight.shape[-1] == 3:
        return F.conv2d(x, weight, bias, padding=1, groups=groups)
    return F.conv_transpose2d(x, transposed(x, weight), bias, stride=2, padding=1, groups=groups)


def transposed(x: Tensor, weight: Tensor) -> Tensor:
    """Return filters (C, R, 4, 4) in the order of ``nn.ConvTranspose2d``: (I, M, 4, 4)."""
    # One of R and M is 1.
    return weight.reshape(x.shape[1], -1, 4, 4)


def before(source: Source) -> Tensor:
    """Return ``filter(x) + bias + noise * plane``."""
    y = source.x
    if source.weight is not None:
        y = filtered(y, source.weight, source.bias)
    elif source.bias is not None:
        y = y + _column(source.bias.to(y.dtype))
    noise, plane = _channels(source.noise), source.plane
    if noise is None or plane is None:
        return y
    return torch.addcmul(y, noise.to(y.dtype), plane.to(y.dtype))


def forward(source: Source, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """Return ``gate(scale * u + shift)``."""
    with as_given(source.x):
        u = before(source)
        if scale is not None and shift is not None:
            u = torch.addcmul(_column(shift.to(u.dtype)), u, _column(scale.to(u.dtype)))
        elif scale is not None:
            u = u * _column(scale.to(u.dtype))
        elif shift is not None:
            u = u + _column(shift.to(u.dtype))
        return F.glu(u, 1) if source.gate else u


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type of sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def statistics(source: Source) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance (C,) of u over samples and pixels."""
    with as_given(source.x):
        u = before(source).to(_wide(source.x.dtype))
        var, mean = torch.var_mean(u, (0, 2, 3), correction=0)
    return mean, var


def backward(
    source: Source, normal: Normal, grad: Tensor, *, batch: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradient of u, the sums (2, N, C) of d and d n, and the gradient of the noise.

    The sums are over samples as well, (2, 1, C), where these share gain and shift. With ``batch``
    the mean and the variance are those of u: see ``backward_programs``.
    """
    with as_given(source.x):
        kind = _wide(source.x.dtype)
        u, d = before(source).to(kind), grad.to(kind)
        n = u
        if normal.mean is not None and normal.rstd is not None:
            n = (u - _column(normal.mean)) * _column(normal.rstd)
        if source.gate:
            z = n if normal.gain is None else n * _column(normal.gain)
            z = z if normal.shift is None else z + _column(normal.shift)
            value, control = z.chunk(2, 1)
            s = control.sigmoid()
            d = torch.cat((d * s, d * value * s * (1 - s)), 1)
        over = (2, 3) if normal.each else (0, 2, 3)
        sums = torch.stack((d.sum(over), (d * n).sum(over))).view(2, -1, d.shape[1])
        k1, k2 = means(source, normal, sums) if batch else (None, None)
        if normal.gain is not None:
            d = d * _column(normal.gain)
        if normal.rstd is not None:
            d = d * _column(normal.rstd)
        if k1 is not None and k2 is not None:
            d = d - _column(k1) - n * _column(k2)
        noise = None
        if source.noise is not None and source.plane is not None:
            noise = (d * source.plane).sum((0, 2, 3))
            noise = noise.sum().view(1) if source.noise.numel() == 1 else noise
        return d.to(source.x.dtype), sums, noise


def means(source: Source, normal: Normal, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return k1 and k2 (C,) of batch statistics from the sums (2, N or 1, C) of d and d n."""
    g = source.geometry
    count = g.samples * g.height * g.width * (4 if g.kind == 2 else 1)
    if normal.each and normal.gain is not None:
        sums = sums * normal.gain
    k = sums[:, 0] if sums.shape[1] == 1 else sums.sum(1)
    # Few numbers, in as few launches as they take.
    factor = None if normal.rstd is None else normal.rstd / count
    if normal.gain is not None and not normal.each:
        factor = normal.gain / count if factor is None else normal.gain * factor
    k = k / count if factor is None else k * factor
    return k[0], k[1]


def filter_gradients(
    x: Tensor, weight: Tensor, grad: Tensor, *, of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and of the filters (C, R, k, k)."""
    with as_given(x):
        up, groups = weight.shape[-1] == 4, x.shape[1] // weight.shape[1]
        kernel = weight.to(x.dtype)
        kernel = transposed(x, kernel) if up else kernel
        step = [2, 2] if up else [1, 1]
        found = torch.ops.aten.convolution_backward(
            grad, x, kernel, None, step, [1, 1], [1, 1], up, [0, 0], groups,
            [of_x, of_weight, False],
        )  # fmt: skip
        of_filters = found[1].reshape(weight.shape) if of_weight else None
        return found[0] if of_x else None, of_filters
