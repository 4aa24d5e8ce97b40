"""The gradients of the operators of :mod:`dsconvert.kernels.gated`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsconvert.kernels import choice, eager, launch
from dsconvert.kernels.depthwise import backward as filter_backward
from dsconvert.kernels.geometry import channels_of, laid_out, size_of
from dsconvert.kernels.launch import Normal, Source
from dsconvert.kernels.operators import differentiable_once, fake, operator

FRONT = "Tensor x, Tensor? weight, Tensor? bias, Tensor? noise, Tensor? plane"
"""Arguments that the operators share."""


def parts_of(source: Source, *more: Any) -> str:
    """Return which parts there are, for the choice of a tile."""
    given = (source.weight, source.bias, source.noise, source.plane, *more)
    return "".join(str(int(part is not None)) for part in given)


def empty_output(x: Tensor, weight: Tensor | None, gate: bool) -> Tensor:
    """Return an unset output of filter and gate."""
    channels = channels_of(x, weight)
    shape = (x.shape[0], channels // 2 if gate else channels, *size_of(x, weight))
    return launch.laid_out_like(x, shape)


@operator(
    f"noise_gate_backward(Tensor grad, {FRONT}, Tensor? mean, Tensor? rstd, Tensor? gain,"
    " Tensor? shift, bool gate, bool batch) -> (Tensor, Tensor, Tensor, Tensor)"
)
def _backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    noise: Tensor | None,
    plane: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    gate: bool,
    batch: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u (N, C, ...), gain and shift, and noise or nothing.

    Those of gain and shift are (C,), or (N, C) where each sample has its own.
    """
    source = Source(x=x, weight=weight, bias=bias, noise=noise, plane=plane, gate=gate)
    normal = Normal(mean=mean, rstd=rstd, gain=gain, shift=shift)

    def by_triton(tile: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        sums = launch.sums(source, normal, grad, tile)
        k1, k2 = eager.means(source, normal, sums) if batch else (None, None)
        noisy = noise is not None and plane is not None
        made, of_noise = launch.gradient(source, normal, k1, k2, grad, tile, of_noise=noisy)
        return made, sums, of_noise

    def by_eager() -> tuple[Tensor, Tensor, Tensor | None]:
        return eager.backward(source, normal, grad, batch=batch)

    of_u, sums, of_noise = choice.run(
        "noise_gate_backward", x, source.geometry, by_triton, by_eager,
        parts=parts_of(source, mean, gain, shift) + str(int(batch)),
    )  # fmt: skip
    of_shift, of_gain = sums.unbind(0) if normal.each else sums[:, 0].unbind(0)
    nothing = sums.new_empty(0) if of_noise is None else of_noise
    return laid_out(of_u, x), of_gain, of_shift, nothing


@fake("noise_gate_backward")
def _(
    grad: Tensor,  # noqa: ARG001
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,  # noqa: ARG001
    noise: Tensor | None,
    plane: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    gate: bool,  # noqa: ARG001
    batch: bool,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    channels = channels_of(x, weight)
    each = Normal(mean=mean, rstd=rstd, gain=gain, shift=shift).each
    shape = (x.shape[0], channels) if each else (channels,)
    noisy = 0 if noise is None or plane is None else noise.numel()
    return (
        empty_output(x, weight, False),
        x.new_empty(shape, dtype=kind),
        x.new_empty(shape, dtype=kind),
        x.new_empty(noisy, dtype=kind),
    )


def _like(found: Tensor, given: Tensor | None) -> Tensor | None:
    """Return sums in the shape and type of what they are the gradient of."""
    return None if given is None else found.reshape(given.shape).to(given.dtype)


def _front_gradients(
    ctx: Any, grad: Tensor, normal: Normal, *, batch: bool
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, weight, bias, noise, plane, gain and shift."""
    x, weight, bias, noise, plane = ctx.saved_tensors[:5]
    of_x, of_weight, of_bias, of_noise = ctx.needs_input_grad[:4]
    of_u, of_gain, of_shift, noisy = torch.ops.dsconvert.noise_gate_backward(
        grad, x, weight, bias, noise, plane, normal.mean, normal.rstd, normal.gain, normal.shift,
        ctx.gate, batch,
    )  # fmt: skip
    found, of_filters = of_u, None
    if weight is not None:
        found, of_filters = filter_backward(of_u, x, weight, of_x=of_x, of_weight=of_weight)
    return (
        found if of_x else None,
        of_filters,
        of_u.sum((0, 2, 3)).to(bias.dtype) if of_bias else None,
        _like(noisy, noise) if of_noise and plane is not None else None,
        None,
        _like(of_gain, normal.gain),
        _like(of_shift, normal.shift),
    )


def setup_fixed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    """Keep what :func:`fixed_gradients` needs."""
    ctx.save_for_backward(*inputs[:7])
    ctx.gate = inputs[7]


def fixed_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of ``noise_gate``."""
    scale, shift = ctx.saved_tensors[5:]
    normal = Normal(gain=scale, shift=shift)
    return (*_front_gradients(ctx, grad, normal, batch=False), None)


def setup_batch(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what :func:`batch_gradients` needs."""
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)  # of these two
    ctx.save_for_backward(*inputs[:7], mean, (var + inputs[7]).rsqrt())
    ctx.gate = inputs[8]


def batch_gradients(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    """Return the gradients of ``batch_norm_gate``."""
    if grad is None:
        return (None,) * 9
    gain, shift, mean, rstd = ctx.saved_tensors[5:]
    normal = Normal(mean=mean, rstd=rstd, gain=gain, shift=shift)
    return (*_front_gradients(ctx, grad, normal, batch=True), None, None)


differentiable_once("noise_gate_backward")
