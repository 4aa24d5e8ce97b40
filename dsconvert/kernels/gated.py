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
from dsconvert.kernels.depthwise import backward as filter_backward
from dsconvert.kernels.geometry import channels_of, laid_out, size_of
from dsconvert.kernels.launch import Normal, Source

_FRONT = "Tensor x, Tensor? weight, Tensor? bias, Tensor? noise, Tensor? plane"


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
        x: see :func:`noise_gate`, as are ``weight``, ``bias``, ``noise``, ``plane`` and ``gate``.
        gain: (C,), or (N, C) where it depends on the sample.
        shift: of the same shape.
        eps: added to the variance.

    Returns:
        the output, and mean and biased variance (C,) in float32, without gradient.
    """
    return torch.ops.dsconvert.batch_norm_gate(x, weight, bias, noise, plane, gain, shift, eps, gate)


def _parts(source: Source, *more: Any) -> str:
    given = (source.weight, source.bias, source.noise, source.plane, *more)
    return "".join(str(int(part is not None)) for part in given)


def _empty_output(x: Tensor, weight: Tensor | None, gate: bool) -> Tensor:
    channels = channels_of(x, weight)
    shape = (x.shape[0], channels // 2 if gate else channels, *size_of(x, weight))
    return launch.laid_out_like(x, shape)


@torch.library.custom_op(
    "dsconvert::noise_gate",
    mutates_args=(),
    schema=f"({_FRONT}, Tensor? scale, Tensor? shift, bool gate) -> Tensor",
)
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
        by_eager, parts=_parts(source, scale, shift),
    )  # fmt: skip


@_noise_gate.register_fake
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
    return _empty_output(x, weight, gate)


@torch.library.custom_op(
    "dsconvert::batch_norm_gate",
    mutates_args=(),
    schema=f"({_FRONT}, Tensor gain, Tensor shift, float eps, bool gate)"
    " -> (Tensor, Tensor, Tensor)",
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
        return made(scale, shift.to(mean.dtype) - mean * scale), mean, var

    def by_triton(tile: Any) -> tuple[Tensor, Tensor, Tensor]:
        found = launch.statistics(source, tile)
        return finish(*found, lambda a, b: launch.forward(source, a, b, tile))

    def by_eager() -> tuple[Tensor, Tensor, Tensor]:
        found = eager.statistics(source)
        return finish(*found, lambda a, b: laid_out(eager.forward(source, a, b), x))

    return choice.run(
        "batch_norm_gate", x, source.geometry, by_triton, by_eager, parts=_parts(source)
    )


@_batch_norm_gate.register_fake
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
        _empty_output(x, weight, gate),
        x.new_empty(channels, dtype=kind),
        x.new_empty(channels, dtype=kind),
    )


@torch.library.custom_op(
    "dsconvert::noise_gate_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_FRONT}, Tensor? mean, Tensor? rstd, Tensor? gain, Tensor? shift,"
    " bool gate, bool batch) -> (Tensor, Tensor, Tensor, Tensor)",
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
    """Return the gradients of u (N, C, ...), gain and shift (N, C), and noise (C,) or nothing."""
    source = Source(x=x, weight=weight, bias=bias, noise=noise, plane=plane, gate=gate)
    normal = Normal(mean=mean, rstd=rstd, gain=gain, shift=shift)

    def by_triton(tile: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        sums, along = launch.sums(source, normal, grad, tile)
        k1, k2 = eager.means(source, normal, sums, along) if batch else (None, None)
        noisy = noise is not None and plane is not None
        made, of_noise = launch.gradient(source, normal, k1, k2, grad, tile, of_noise=noisy)
        return made, along, sums, of_noise

    def by_eager() -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        return eager.backward(source, normal, grad, batch=batch)

    of_u, along, sums, of_noise = choice.run(
        "noise_gate_backward", x, source.geometry, by_triton, by_eager,
        parts=_parts(source, mean, gain, shift) + str(int(batch)),
    )  # fmt: skip
    nothing = sums.new_empty(0) if of_noise is None else of_noise
    return laid_out(of_u, x), along.contiguous(), sums.contiguous(), nothing


@_backward.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,  # noqa: ARG001
    noise: Tensor | None,
    plane: Tensor | None,
    mean: Tensor | None,  # noqa: ARG001
    rstd: Tensor | None,  # noqa: ARG001
    gain: Tensor | None,  # noqa: ARG001
    shift: Tensor | None,  # noqa: ARG001
    gate: bool,  # noqa: ARG001
    batch: bool,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    channels = channels_of(x, weight)
    noisy = noise is not None and plane is not None
    return (
        _empty_output(x, weight, False),
        x.new_empty((x.shape[0], channels), dtype=kind),
        x.new_empty((x.shape[0], channels), dtype=kind),
        x.new_empty(channels if noisy else 0, dtype=kind),
    )


def _like(found: Tensor, given: Tensor | None) -> Tensor | None:
    """Reduce sums (N, C) or (C,) to the shape and type of what they are the gradient of."""
    if given is None:
        return None
    if given.numel() == 1:
        found = found.sum()
    elif found.dim() == 2 and given.dim() == 1:
        found = found.sum(0)
    return found.reshape(given.shape).to(given.dtype)


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


def _setup_fixed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:7])
    ctx.gate = inputs[7]


def _fixed_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *_, scale, shift = ctx.saved_tensors
    normal = Normal(gain=scale, shift=shift)
    return (*_front_gradients(ctx, grad, normal, batch=False), None)


def _setup_batch(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.save_for_backward(*inputs[:7], mean, (var + inputs[7]).rsqrt())
    ctx.gate = inputs[8]


def _batch_gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    *_, gain, shift, mean, rstd = ctx.saved_tensors
    normal = Normal(mean=mean, rstd=rstd, gain=gain, shift=shift)
    return (*_front_gradients(ctx, grad, normal, batch=True), None, None)


_noise_gate.register_autograd(_fixed_gradients, setup_context=_setup_fixed)
_batch_norm_gate.register_autograd(_batch_gradients, setup_context=_setup_batch)
