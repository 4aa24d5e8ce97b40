"""The operator ``dsconvert::pointwise``: a 1 x 1 convolution, and its gradients.

torch has two ways to compute it, cuDNN's convolution and cuBLAS's matrix product, and neither is
the faster one everywhere: for float32 maps of a generator cuDNN took an algorithm for the gradient
of the weights that is three times slower than the rest of the step (H100, torch 2.11). On CUDA the
faster one is found by timing, once for each size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert.kernels import choice
from dsconvert.kernels.geometry import format_of, is_last, laid_out
from dsconvert.kernels.operators import differentiable_once, fake, gradients, operator
from dsconvert.util.devices import rounds_to_tf32


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the 1 x 1 convolution (N, O, H, W) of x (N, I, H, W); differentiable once.

    Args:
        x: contiguous or in ``channels_last``; the output has the same layout.
        weight: (O, I, 1, 1).
        bias: (O,).
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):  # as ``F.conv2d`` does
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return torch.ops.dsconvert.pointwise(x, weight, bias)


def is_pointwise(conv: nn.Module | None) -> bool:
    """Return whether :func:`pointwise` does what a convolution of this geometry does.

    Callers make sure that its class computes as torch's own does.
    """
    return (
        isinstance(conv, nn.Conv2d)
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.padding in ((0, 0), "valid", "same")
        and conv.groups == 1
    )


def _faster(operation: str, x: Tensor, weight: Tensor, convolution: Any, product: Any) -> Tensor:
    """Return the result of the faster way.

    It is never a product whose factors torch rounds further than those of a convolution.
    """
    rounds, product_rounds = rounds_to_tf32()
    if x.numel() == 0 or (product_rounds and not rounds):
        return convolution()
    n, inputs, height, width = x.shape
    rounded = f"{int(rounds)}{int(product_rounds)}"
    kind, last = str(x.dtype).removeprefix("torch."), int(is_last(x))
    size = f"{n}/{inputs}/{weight.shape[0]}/{height}/{width}/{last}"
    return choice.faster(f"{operation} {kind} {size} {rounded}", x, (convolution, product))


@operator("pointwise(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    def convolution() -> Tensor:
        return laid_out(F.conv2d(x, weight, bias), x)

    return _faster("pointwise", x, weight, convolution, lambda: _mixed(x, weight.flatten(1), bias))


def _mixed(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``matrix`` (O, I) times the channels of x, in the layout of x."""
    if is_last(x):
        made = F.linear(x.permute(0, 2, 3, 1), matrix, bias).permute(0, 3, 1, 2)
        return made.contiguous(memory_format=torch.channels_last)
    n, _, height, width = x.shape
    flat = x.contiguous().flatten(2)
    made = torch.matmul(matrix, flat)
    if bias is not None:
        made += bias[:, None]
    return made.view(n, -1, height, width)


@fake("pointwise")
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    shape = (x.shape[0], weight.shape[0], x.shape[2], x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=format_of(x))


@operator("pointwise_of_x(Tensor grad, Tensor x, Tensor weight) -> Tensor")
def _of_x(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of x."""
    grad = laid_out(grad, x)

    def convolution() -> Tensor:
        return laid_out(_convolution_backward(grad, x, weight, 0), x)

    return _faster(
        "pointwise_of_x", x, weight, convolution, lambda: _mixed(grad, weight.flatten(1).t())
    )


@operator("pointwise_of_weight(Tensor grad, Tensor x, Tensor weight) -> Tensor")
def _of_weight(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the weights."""
    grad = laid_out(grad, x)

    def convolution() -> Tensor:
        return _convolution_backward(grad, x, weight, 1).contiguous()

    def product() -> Tensor:
        if is_last(x):
            left, right = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (grad, x))
            return (left.t() @ right).view(weight.shape)
        left, right = grad.flatten(2), x.contiguous().flatten(2)
        # One product a sample: their sum in float32 where the maps are in half precision.
        kind = torch.promote_types(x.dtype, torch.float32)
        return (left @ right.mT).sum(0, dtype=kind).to(weight.dtype).view(weight.shape)

    return _faster("pointwise_of_weight", x, weight, convolution, product)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
    """Return the gradient of x (0) or of the weights (1)."""
    wanted = [which == 0, which == 1, False]
    found = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, wanted
    )
    return found[which]


@fake("pointwise_of_x")
def _(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=format_of(x))


@fake("pointwise_of_weight")
def _(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:  # noqa: ARG001
    return weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias = None if bias is None else bias.dtype


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = ctx.needs_input_grad
    return (
        torch.ops.dsconvert.pointwise_of_x(grad, x, weight) if of_x else None,
        torch.ops.dsconvert.pointwise_of_weight(grad, x, weight) if of_weight else None,
        grad.sum((0, 2, 3)).to(ctx.bias) if of_bias else None,
    )


gradients("pointwise", _gradients, _setup)
differentiable_once("pointwise_of_x")
differentiable_once("pointwise_of_weight")
