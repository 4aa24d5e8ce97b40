"""The operator ``dsconvert::depthwise``: 3 x 3, or 4 x 4 transposed, and its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.kernels import choice, eager, launch
from dsconvert.kernels.geometry import channels_of, geometry_of, laid_out, size_of
from dsconvert.kernels.operators import differentiable_once, fake, gradients, operator

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)  # no union: torch 2.6 can't compile a test for one


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a depthwise convolution of x (N, I, H, W), or of several sums of such.

    Channel c of the output sums the inputs ``c // M * R + r``, r < R, each filtered by
    ``weight[c, r]``; R or M = C R / I is 1, as in grouped convolutions whose groups have one input
    or one output.

    Args:
        x: contiguous or in ``channels_last``; the output has the same layout and type.
        weight: (C, R, 3, 3), with a padding of 1; or (C, R, 4, 4), a transposed convolution with
            stride 2 and padding 1, which doubles the size. :func:`filters_of` returns it.
        bias: (C,).
    """
    return torch.ops.dsconvert.depthwise(x, weight, bias)


def filters_of(conv: nn.Module) -> Tensor | None:
    """Return the weight of ``conv`` as :func:`depthwise` takes it; None: another kind.

    It is a view: gradients reach the weight. The geometry decides alone: callers make sure that
    the class computes as torch's own does.
    """
    if not isinstance(conv, _CONVOLUTIONS):
        return None
    inputs, outputs, groups = conv.in_channels, conv.out_channels, conv.groups
    if groups not in (inputs, outputs) or max(inputs, outputs) % groups:
        return None
    if conv.padding_mode != "zeros" or conv.dilation != (1, 1):
        return None
    if isinstance(conv, nn.Conv2d):
        fits = conv.kernel_size == (3, 3) and conv.stride == (1, 1)
        return conv.weight if fits and conv.padding in ((1, 1), "same") else None
    geometry = (conv.kernel_size, conv.stride, conv.padding, conv.output_padding)
    if geometry != ((4, 4), (2, 2), (1, 1), (0, 0)):
        return None
    # (I, C / groups, 4, 4): one of I and C is the number of groups.
    return conv.weight.reshape(outputs, inputs // groups, 4, 4)


@operator("depthwise(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    source = launch.Source(x=x, weight=weight, bias=bias)

    def by_eager() -> Tensor:
        return laid_out(eager.forward(source, None, None), x)

    return choice.run(
        "depthwise", x, source.geometry, lambda tile: launch.forward(source, None, None, tile),
        by_eager,
    )  # fmt: skip


@fake("depthwise")
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    shape = (x.shape[0], channels_of(x, weight), *size_of(x, weight))
    return launch.laid_out_like(x, shape)


@operator(
    "depthwise_backward(Tensor grad, Tensor x, Tensor weight, bool of_x, bool of_weight)"
    " -> (Tensor, Tensor)"
)
def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, of_x: bool, of_weight: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the filters; empty where they are not wanted."""

    def by_eager() -> tuple[Tensor | None, Tensor | None]:
        return eager.filter_gradients(x, weight, grad, of_x=of_x, of_weight=of_weight)

    found, of_filters = choice.run(
        "depthwise_backward", x, geometry_of(x, weight),
        lambda tile: launch.filter_gradients(
            x, weight, grad, tile, of_x=of_x, of_weight=of_weight
        ),
        by_eager, parts=f"{int(of_x)}{int(of_weight)}",
    )  # fmt: skip
    return (
        x.new_empty(0) if found is None else laid_out(found, x),
        weight.new_empty(0) if of_filters is None else of_filters.to(weight.dtype),
    )


@fake("depthwise_backward")
def _(
    grad: Tensor, x: Tensor, weight: Tensor, of_x: bool, of_weight: bool  # noqa: ARG001
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return (
        launch.laid_out_like(x, tuple(x.shape)) if of_x else x.new_empty(0),
        weight.new_empty(weight.shape if of_weight else 0),
    )


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, *, of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of x and of the filters from that of the output."""
    if not of_x and not of_weight:
        return None, None
    found = torch.ops.dsconvert.depthwise_backward(grad, x, weight, of_x, of_weight)
    return found[0] if of_x else None, found[1] if of_weight else None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias = None if bias is None else bias.dtype


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = ctx.needs_input_grad
    return (
        *backward(grad, x, weight, of_x=of_x, of_weight=of_weight),
        grad.sum((0, 2, 3)).to(ctx.bias) if of_bias else None,
    )


gradients("depthwise", _gradients, _setup)
differentiable_once("depthwise_backward")
