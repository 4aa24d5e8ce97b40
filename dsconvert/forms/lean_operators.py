"""The step of the training form by the operators of :mod:`dsconvert.kernels`, for GPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsconvert.kernels import batch_norm_gate, noise_gate


def by_operators(
    norm: Any,
    x: Tensor,
    filters: Tensor | None,
    filter_bias: Tensor | None,
    noise: Tensor | None,
    plane: Tensor | None,
    gain: Tensor,
    shift: Tensor,
    mean: Tensor,
    var: Tensor,
) -> Tensor:
    """Filter, add noise, normalise and gate x; update the running statistics in training.

    Args:
        norm: has ``training``, ``momentum`` and ``eps``.
        x: (N, I, h, w).
        filters: (C, R, k, k), see :func:`dsconvert.kernels.depthwise`; None: no filter.
        filter_bias: (C,).
        noise: the weight of the noise.
        plane: (N, 1, H, W).
        gain: (C,), or (N, C).
        shift: of the same shape.
        mean: the running mean (C,); changed in training.
        var: the running variance (C,); likewise.
    """
    if norm.training:
        out, batch_mean, batch_var = batch_norm_gate(
            x, gain, shift, weight=filters, bias=filter_bias, noise=noise, plane=plane,
            eps=norm.eps,
        )  # fmt: skip
        count = x.shape[0] * out.shape[2] * out.shape[3]
        with torch.no_grad():
            # As torch does: the running variance is the unbiased one.
            unbiased = batch_var * (count / max(1, count - 1))
            mean.lerp_(batch_mean.to(mean.dtype), norm.momentum)
            var.lerp_(unbiased.to(var.dtype), norm.momentum)
        return out
    # Copies of the statistics, so that a later update does not change this step's backward pass.
    kind = torch.promote_types(torch.float32, var.dtype)
    scale = gain.to(kind) * (var.to(kind) + norm.eps).rsqrt()
    return noise_gate(
        x, weight=filters, bias=filter_bias, noise=noise, plane=plane, scale=scale,
        shift=shift.to(kind) - mean.to(kind) * scale,
    )  # fmt: skip
