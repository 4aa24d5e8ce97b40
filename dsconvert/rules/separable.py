"""The parts that both separable rules share: the two factors, their recognition, their product."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from dsconvert.model.norms import effective_weight, train_alike
from dsconvert.records import Site
from dsconvert.rules.base import assign, spatial_options

Convolution = nn.Conv2d | nn.ConvTranspose2d


class Pair(NamedTuple):
    """The two factors of a separable convolution."""

    depthwise: Convolution
    pointwise: nn.Conv2d


def _blank(cls: type[nn.Module], *args: object, **kwargs: object) -> Any:
    # No random draw: a conversion must not move the caller's random state, and it is faster.
    return skip_init(cls, *args, **kwargs)


def pointwise(
    inp: int,
    out: int,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: tuple[int, int] = (1, 1),
) -> nn.Conv2d:
    """Return a 1x1 convolution with the given ``(out, inp)`` weight."""
    conv = _blank(nn.Conv2d, inp, out, 1, stride=stride, bias=bias is not None)
    assign(conv, weight, bias)
    return conv


def depthwise(site: Site, inp: int, out: int, weight: Tensor, bias: Tensor | None) -> Convolution:
    """Return the spatial factor: the original's geometry, ``min(inp, out)`` groups."""
    cls = nn.ConvTranspose2d if site.kind == "transposed" else nn.Conv2d
    conv = _blank(
        cls,
        inp,
        out,
        site.kernel_size,
        groups=min(inp, out),
        bias=bias is not None,
        **spatial_options(site),
    )
    assign(conv, weight, bias)
    return conv


def pair_of(module: nn.Module, *names: str, stride: tuple[int, int] = (1, 1)) -> Pair | None:
    """Return the factors of ``module`` if it is a separable pair in the order of ``names``.

    A pair is an ``nn.Sequential`` of exactly the children ``depthwise`` and ``pointwise``, as the
    rules build it: the pointwise is a matrix at each pixel, with the given stride, the depthwise
    reads or writes each channel of the dense convolution by a group of its own, and only the
    second one has a bias. (A network may have pairs of these names that are none of ours.)
    """
    if type(module) is not nn.Sequential or [n for n, _ in module.named_children()] != [*names]:
        return None
    spatial, point = module.get_submodule("depthwise"), module.get_submodule("pointwise")
    if not isinstance(point, nn.Conv2d) or point.kernel_size != (1, 1):
        return None
    padded = point.padding not in ((0, 0), "same", "valid")
    if point.stride != stride or point.groups != 1 or padded:
        return None
    if not isinstance(spatial, nn.Conv2d | nn.ConvTranspose2d):
        return None
    first = names[0] == "depthwise"
    if spatial.groups != (spatial.in_channels if first else spatial.out_channels):
        return None
    # A bias of the first factor is cut off where the second one pads: no dense bias equals it.
    if (spatial if first else point).bias is not None:
        return None
    return Pair(spatial, point)


def as_stored_wide(pair: Pair) -> tuple[Tensor, Tensor]:
    """Return the applied weights of depthwise and pointwise, half precision as float32.

    The depthwise is ``(C, 1, kh, kw)`` or ``(C, R, kh, kw)``, the pointwise ``(out, inp)``.
    """
    mix = effective_weight(pair.pointwise).flatten(1)
    wide = mix.float() if mix.dtype in (torch.float16, torch.bfloat16) else mix
    return effective_weight(pair.depthwise).to(wide.dtype), wide


def dense_of(module: nn.Module, pair: Pair, kernel: Tensor, bias: Tensor | None) -> Convolution:
    """Return the dense convolution with ``kernel (O, I, kh, kw)`` and the geometry of ``pair``.

    Mode, type and ``requires_grad`` are those of ``module``, which holds the pair.
    """
    spatial = pair.depthwise
    options: dict[str, Any] = {
        "stride": spatial.stride,
        "padding": spatial.padding,
        "dilation": spatial.dilation,
        "padding_mode": spatial.padding_mode,
    }
    transposed = isinstance(spatial, nn.ConvTranspose2d)
    if transposed:
        options["output_padding"] = spatial.output_padding
    outs, inp = kernel.shape[:2]
    dense = _blank(
        nn.ConvTranspose2d if transposed else nn.Conv2d,
        inp,
        outs,
        tuple(kernel.shape[-2:]),
        bias=bias is not None,
        **options,
    )
    weight = kernel.transpose(0, 1) if transposed else kernel
    kind = effective_weight(pair.pointwise).dtype
    assign(dense, weight.to(kind), bias.detach() if bias is not None else None)
    train_alike(dense, module)
    return dense.train(module.training)
