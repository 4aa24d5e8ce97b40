"""Separable pairs back to dense convolutions: a check, and for devices where depthwise is slow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from dsconvert.model.copying import owned_copy
from dsconvert.model.editing import carry_hooks, replace
from dsconvert.model.norms import effective_weight
from dsconvert.model.wrappers import unwrapped
from dsconvert.rules.base import assign

_NAMES = (["depthwise", "pointwise"], ["pointwise", "depthwise"])


def is_pair(module: nn.Module) -> bool:
    """Whether ``module`` is a separable pair as the rules build them, with nothing between."""
    if not isinstance(module, nn.Sequential) or list(dict(module.named_children())) not in _NAMES:
        return False
    point, spatial = module.get_submodule("pointwise"), module.get_submodule("depthwise")
    return (
        isinstance(point, nn.Conv2d)
        and point.kernel_size == (1, 1)
        and isinstance(spatial, nn.Conv2d | nn.ConvTranspose2d)
        and spatial.groups == min(spatial.in_channels, spatial.out_channels)
    )


def merge_pair(pair: nn.Sequential) -> nn.Conv2d | nn.ConvTranspose2d:
    """The dense convolution that computes what ``pair`` computes (norms folded)."""
    first = next(iter(dict(pair.named_children())))
    point, spatial = pair.get_submodule("pointwise"), pair.get_submodule("depthwise")
    if not isinstance(point, nn.Conv2d) or not isinstance(spatial, nn.Conv2d | nn.ConvTranspose2d):
        raise TypeError("not a separable pair")
    transposed = isinstance(spatial, nn.ConvTranspose2d)
    mix, filters = effective_weight(point).flatten(1), effective_weight(spatial)
    kh, kw = filters.shape[-2:]
    wide = mix.float() if mix.dtype in (torch.float16, torch.bfloat16) else mix
    filters = filters.to(wide.dtype)
    if first == "depthwise":
        inp, outs = spatial.in_channels, point.out_channels
        kernel = torch.einsum(
            "oir,irhw->oihw", wide.reshape(outs, inp, -1), filters.reshape(inp, -1, kh, kw)
        )
    else:
        inp, outs = point.in_channels, spatial.out_channels
        kernel = torch.einsum(
            "ori,orhw->oihw", wide.reshape(outs, -1, inp), filters.reshape(outs, -1, kh, kw)
        )
    bias = spatial.bias if first == "pointwise" else point.bias
    options = {
        "stride": spatial.stride,
        "padding": spatial.padding,
        "dilation": spatial.dilation,
        "padding_mode": spatial.padding_mode,
    }
    if isinstance(spatial, nn.ConvTranspose2d):
        options["output_padding"] = spatial.output_padding
    cls = nn.ConvTranspose2d if transposed else nn.Conv2d
    dense: Any = skip_init(cls, inp, outs, (kh, kw), bias=bias is not None, **options)
    weight: Tensor = (kernel.transpose(0, 1) if transposed else kernel).to(mix.dtype)
    assign(dense, weight, bias.detach() if bias is not None else None)
    dense.requires_grad_(any(p.requires_grad for p in pair.parameters()))
    return dense.train(pair.training)


def merge(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with every separable pair merged to one dense convolution."""
    result = owned_copy(unwrapped(model))
    with torch.no_grad():
        for _, module in list(result.named_modules()):
            if is_pair(module) and isinstance(module, nn.Sequential):
                merged = merge_pair(module)
                carry_hooks(module, merged)
                replace(result, module, merged)
    return result
