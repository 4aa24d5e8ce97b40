"""One differentiable step for [depthwise convolution +] noise + batch normalisation + gate.

Written as four operators these keep five maps for the backward pass: the convolution's output with
its noise, the normalised map, both halves of the gate, its sigmoid. All of them follow from the
input of the depthwise convolution (a quarter of the size, behind an upsample) by arithmetic that
costs less than reading them from memory. So only that input is kept, with the statistics of the
batch; the rest is recomputed in the backward pass, some rows at a time to stay in the cache.
Gradients are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dsconvert.util.autocast import in_mixed_type, mixed_type

Spatial = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
"""``spatial(x, kernel, bias)``: a depthwise convolution with everything else fixed."""
TILE = 2 << 20
"""Bytes of a map that are processed at a time on a CPU, where they stay in the cache."""
LARGE_TILE = 256 << 20
"""The same elsewhere: many samples a call, since each call takes time, and limited memory."""
Part = tuple[slice, slice, slice, slice]


def _parts(y: Tensor) -> Iterator[Part]:
    """Yield slices of ``y`` (N, C, H, W): one sample, some rows; on a GPU: some samples."""
    n, c, h, w = y.shape
    every = slice(None)
    if y.device.type != "cpu":
        many = max(1, LARGE_TILE // max(1, c * h * w * y.element_size()))
        for first in range(0, n, many):
            yield slice(first, first + many), every, every, every
        return
    rows = max(1, TILE // max(1, c * w * y.element_size()))
    for i in range(n):
        for top in range(0, h, rows):
            yield slice(i, i + 1), every, slice(top, top + rows), every


def _noisy(x: Tensor, weight: Tensor | None, plane: Tensor | None, *, owned: bool) -> Tensor:
    """Return ``x + weight * plane``; in place where ``x`` has no other reader."""
    if weight is None or plane is None:
        return x
    if x.dtype == weight.dtype == plane.dtype:
        return x.addcmul_(weight, plane) if owned else torch.addcmul(x, weight, plane)
    return x + weight * plane


def _column(values: Tensor, part: Part) -> Tensor:
    """Reshape numbers (C,) or (N, C) to (1, C, 1, 1) for a part."""
    return values[None, :, None, None] if values.dim() == 1 else values[part[0], :, None, None]


class NormGate(torch.autograd.Function):
    """Gate(gain * normalise(spatial(x) + weight * plane) + bias): (N, 2C, ...) -> (N, C, ...).

    Batch normalisation after Ioffe and Szegedy (2015), gated linear unit after Dauphin et al.
    (2017). ``gain`` and ``bias`` are (2C,), or (N, 2C) where they depend on the sample. Running
    statistics are updated once, in the forward pass. ``owned``: ``x`` has no other reader, so that
    noise may be added in place (torch's version counter detects a violation).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kernel: Tensor | None,
        kernel_bias: Tensor | None,
        weight: Tensor | None,
        plane: Tensor | None,
        gain: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        spatial: Spatial | None,
        owned: bool,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """See the class."""
        y = x.detach() if spatial is None or kernel is None else spatial(x, kernel, kernel_bias)
        y = _noisy(y, weight, plane, owned=owned or spatial is not None)
        if training:
            batch_mean, batch_var = torch.batch_norm_update_stats(y, mean, var, momentum)
        else:
            # Copies, so that a later update does not change this step's backward pass.
            batch_mean, batch_var = mean.clone(), var.clone()
        scale = (batch_var + eps).rsqrt()
        a = gain * scale
        b = bias - batch_mean * a
        out = torch.empty_like(y[:, : y.shape[1] // 2], memory_format=_format(y))
        for part in _parts(y):
            out[part] = F.glu(torch.addcmul(_column(b, part), y[part], _column(a, part)), 1)
        # Without a convolution the noisy map is kept, and x can be freed.
        kept = y if spatial is None else x
        ctx.save_for_backward(
            kept, kernel, kernel_bias, weight, plane, gain, bias, batch_mean, scale
        )
        ctx.spatial, ctx.training, ctx.mixed = spatial, training, mixed_type(x)
        return out

    @staticmethod
    @once_differentiable  # its wrapper hides the names of the parameters
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Recompute the maps, then run the operators' own backward passes."""
        (grad,) = grads
        kept, kernel, kernel_bias, weight, plane, gain, bias, mean, scale = ctx.saved_tensors
        x = made = y = kept
        leaves: tuple[Tensor, ...] = ()
        if ctx.spatial is not None:
            with torch.enable_grad(), in_mixed_type(kept, ctx.mixed):
                x = kept.detach().requires_grad_(ctx.needs_input_grad[0])
                leaves = tuple(
                    t.detach().requires_grad_() for t in (kernel, kernel_bias) if t is not None
                )
                made = ctx.spatial(x, *leaves, *[None] * (2 - len(leaves)))
            y = _noisy(made.detach(), weight, plane, owned=True)
        grad_y, grad_gain, grad_bias = _norm_gate_backward(
            grad, y, gain, bias, mean, scale, ctx.training
        )
        grad_weight = None
        if weight is not None and ctx.needs_input_grad[3]:
            grad_weight = (grad_y.sum(1, keepdim=True) * plane).sum().reshape(weight.shape)
        grad_x, grad_kernel, grad_kernel_bias = grad_y, None, None
        if ctx.spatial is not None:
            wanted = ([x] if x.requires_grad else []) + list(leaves)
            found = list(torch.autograd.grad(made, wanted, grad_y))
            grad_x = found.pop(0) if x.requires_grad else None
            grad_kernel = found[0]
            grad_kernel_bias = found[1] if len(found) > 1 else None
        return (
            grad_x, grad_kernel, grad_kernel_bias, grad_weight, None, grad_gain, grad_bias,
            *[None] * 7,
        )  # fmt: skip


def _format(y: Tensor) -> torch.memory_format:
    last = y.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not y.is_contiguous() else torch.contiguous_format


def _norm_gate_backward(
    grad: Tensor,
    y: Tensor,
    gain: Tensor,
    bias: Tensor,
    mean: Tensor,
    scale: Tensor,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of y, gain and bias of ``glu(gain * (y - mean) * scale + bias)``.

    With batch statistics, ``dy = a (g - mean(g) - n mean(g n))`` for ``n = (y - mean) scale`` and
    ``a = gain scale``, the means over N, H and W (Ioffe and Szegedy 2015, after its eq. 4).
    """
    total = torch.empty_like(y, memory_format=_format(y))
    grad_gain, grad_bias = torch.zeros_like(gain), torch.zeros_like(bias)
    shift = -mean * scale
    for part in _parts(y):
        normal = torch.addcmul(_column(shift, part), y[part], _column(scale, part))
        out = torch.addcmul(_column(bias, part), normal, _column(gain, part))
        value, gate = out.chunk(2, 1)
        gate = gate.sigmoid_()
        g = total[part]
        to_value, to_gate = g.chunk(2, 1)
        torch.mul(grad[part], gate, out=to_value)
        torch.mul(to_value, value.mul_(1 - gate), out=to_gate)
        row = part[0] if gain.dim() == 2 else slice(None)
        add_gain, add_bias = normal.mul_(g).sum((2, 3)), g.sum((2, 3))
        grad_gain[row] += add_gain if gain.dim() == 2 else add_gain.sum(0)
        grad_bias[row] += add_bias if gain.dim() == 2 else add_bias.sum(0)
    a = gain * scale
    if not training:
        for part in _parts(y):
            total[part].mul_(_column(a, part))
        return total, grad_gain, grad_bias
    count = y.numel() // y.shape[1]
    # Sums of gain * g, the gradient behind the normalisation.
    along, across = gain * grad_gain, gain * grad_bias
    if gain.dim() == 2:
        along, across = along.sum(0), across.sum(0)
    slope = -along * scale.square() / count
    offset = -across * scale / count - slope * mean
    for part in _parts(y):
        g = total[part].mul_(_column(a, part))
        g.addcmul_(y[part], _column(slope, part)).add_(_column(offset, part))
    return total, grad_gain, grad_bias
