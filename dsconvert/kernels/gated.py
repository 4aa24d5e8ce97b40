"""The operators ``dsconvert::noise_gate`` and ``dsconvert::batch_norm_gate``, and their gradients.

Both filter (optionally), add noise, normalise and gate a map in one pass that writes only the
output: with fixed numbers for inference; with the statistics of the batch, which cost one more pass
over the input, for training. The backward pass makes everything anew from the input (recomputation:
Chen et al. 2016, arXiv:1604.06174), so that only the input is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsconvert.kernels import choice, eager, launch
from dsconvert.kernels.gate_gradients import (
    FRONT,
    batch_gradients,
    empty_output,
    fixed_gradients,
    parts_of,
    setup_batch,
    setup_fixed,
)
from dsconvert.kernels.geometry import channels_of, laid_out
from dsconvert.kernels.launch import Source
from dsconvert.kernels.operators import fake, gradients, operator


def noise_gate(
    x: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    noise: Tensor | None = None,
    plane: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    gate: bool = True,
) -> Tensor:
    """Return ``gate(scale * (filter(x) + bias + noise * plane) + shift)``, (N, C or C / 2, ...).

    The gate (Dauphin et al. 2017) multiplies the first half of the channels by the sigmoid of the
    second. Differentiable once, in all but the plane.

    Args:
        x: (N, I, H, W), contiguous or in ``channels_last``, as is the output.
        weight: filters, see :func:`dsconvert.kernels.depthwise`; None: no filter.
        bias: (C,).
        noise: one number or C.
        plane: (N or 1, 1, H', W'), of the output's size.
        scale: (C,), or (N, C); None: 1.
        shift: of the same shape as ``scale``; None: 0.
        gate: whether there is a gate.
    """
    return torch.ops.dsconvert.noise_gate(x, weight, bias, noise, plane, scale, shift, gate)


def batch_norm_gate(
    x: Tensor,
    gain: Tensor,
    shift: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    noise: Tensor | None = None,
    plane: Tensor | None = None,
    eps: float = 1e-5,
    gate: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same with batch normalisation (Ioffe and Szegedy 2015) by the batch's statistics.

    Args:
        x: see :func:`noise_gate`.
        gain: (C,), or (N, C) where it depends on the sample.
        shift: of the same shape.
        weight: see :func:`noise_gate`.
        bias: (C,).
        noise: one number or C.
        plane: see :func:`noise_gate`.
        eps: added to the variance.
        gate: whether there is a gate.

    Returns:
        the output, and mean and biased variance (C,) in float32, without gradient.
    """
    return torch.ops.dsconvert.batch_norm_gate(
        x, weight, bias, noise, plane, gain, shift, eps, gate
    )


@operator(f"noise_gate({FRONT}, Tensor? scale, Tensor? shift, bool gate) -> Tensor")
def _noise_gate(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    noise: Tensor | None,
    plane: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    gate: bool,
) -> Tensor:
    source = Source(x=x, weight=weight, bias=bias, noise=noise, plane=plane, gate=gate)

    def by_eager() -> Tensor:
        made = eager.forward(source, scale, shift)
        return laid_out(made.clone() if made is x else made, x)

    return choice.run(
        "noise_gate", x, source.geometry, lambda tile: launch.forward(source, scale, shift, tile),
        by_eager, parts=parts_of(source, scale, shift),
    )  # fmt: skip


@fake("noise_gate")
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,  # noqa: ARG001
    noise: Tensor | None,  # noqa: ARG001
    plane: Tensor | None,  # noqa: ARG001
    scale: Tensor | None,  # noqa: ARG001
    shift: Tensor | None,  # noqa: ARG001
    gate: bool,
) -> Tensor:
    return empty_output(x, weight, gate)


@operator(
    f"batch_norm_gate({FRONT}, Tensor gain, Tensor shift, float eps, bool gate)"
    " -> (Tensor, Tensor, Tensor)"
)
def _batch_norm_gate(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    noise: Tensor | None,
    plane: Tensor | None,
    gain: Tensor,
    shift: Tensor,
    eps: float,
    gate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    source = Source(x=x, weight=weight, bias=bias, noise=noise, plane=plane, gate=gate)

    def finish(
        mean: Tensor, var: Tensor, made: Any
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        scale = gain.to(mean.dtype) * (var + eps).rsqrt()
        moved = torch.addcmul(shift.to(mean.dtype), mean, scale, value=-1)
        return made(scale, moved), mean, var

    def by_triton(tile: Any) -> tuple[Tensor, Tensor, Tensor]:
        found = launch.statistics(source, tile)
        return finish(*found, lambda a, b: launch.forward(source, a, b, tile))

    def by_eager() -> tuple[Tensor, Tensor, Tensor]:
        found = eager.statistics(source)
        return finish(*found, lambda a, b: laid_out(eager.forward(source, a, b), x))

    return choice.run(
        "batch_norm_gate", x, source.geometry, by_triton, by_eager, parts=parts_of(source)
    )


@fake("batch_norm_gate")
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,  # noqa: ARG001
    noise: Tensor | None,  # noqa: ARG001
    plane: Tensor | None,  # noqa: ARG001
    gain: Tensor,  # noqa: ARG001
    shift: Tensor,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    gate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    channels = channels_of(x, weight)
    return (
        empty_output(x, weight, gate),
        x.new_empty(channels, dtype=kind),
        x.new_empty(channels, dtype=kind),
    )


gradients("noise_gate", fixed_gradients, setup_fixed)
gradients("batch_norm_gate", batch_gradients, setup_batch)
