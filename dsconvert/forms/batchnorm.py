"""Fold batch normalisation, which is affine in eval mode, into the convolution in front of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from dsconvert.forms.layers import AddNoise
from dsconvert.forms.nodes import changeable, layer_of, module_of, replace_node


def fold_batch_norms(module: fx.GraphModule) -> None:
    """Fold batch normalisations into the convolutions in front, also across a noise injection."""
    graph = module.graph
    free = changeable(module)
    for node in list(graph.nodes):
        norm = layer_of(module, node, nn.BatchNorm2d)
        if norm is None or norm.running_mean is None:
            continue
        before: Any = node.args[0]
        injection = module_of(module, before)
        if isinstance(injection, AddNoise):
            if len(before.users) != 1:
                continue
            site: Any = before.args[0]
        else:
            injection, site = None, before
        conv = layer_of(module, site)
        if conv not in free or len(site.users) != 1:
            continue
        scale, shift = affine_of(norm)
        absorb(conv, scale, shift)
        if injection is not None:
            injection.scale(scale)
        replace_node(graph, node, before)


def affine_of(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return scale and shift (C,) of a batch normalisation in eval mode, in float64."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    scale = (var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.detach().double()
    shift = -mean.double() * scale
    return scale, shift + norm.bias.detach().double() if norm.affine else shift


def absorb(conv: nn.Conv2d | nn.ConvTranspose2d, scale: Tensor, shift: Tensor) -> None:
    """Make ``conv`` compute ``scale * conv(x) + shift``, channel by channel."""
    weight = conv.weight.detach().double()
    if isinstance(conv, nn.ConvTranspose2d):
        # (I, O / groups, kh, kw): the outputs of a group lie together.
        per_group = scale.reshape(conv.groups, 1, -1, 1, 1)
        wide = weight.reshape(conv.groups, -1, *weight.shape[1:]) * per_group
        weight = wide.reshape(weight.shape)
    else:
        weight = weight * scale.reshape(-1, 1, 1, 1)
    bias = shift if conv.bias is None else conv.bias.detach().double() * scale + shift
    kind, device = conv.weight.dtype, conv.weight.device
    conv.weight = nn.Parameter(weight.to(device, kind), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(device, kind), requires_grad=False)
