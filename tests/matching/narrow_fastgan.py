"""A FastGAN with fewer channels in its last block, cut by hand."""

from __future__ import annotations

import copy

import torch
from torch import nn

from dsconvert.model.graph import ConvTypes
from dsconvert.model.norms import fold, norm_kind


def _cut(conv: nn.Conv2d, *, outputs: list[int] | None = None, inputs: list[int] | None = None):
    weight = conv.weight.detach()
    weight = weight if outputs is None else weight[outputs]
    weight = weight if inputs is None else weight[:, inputs]
    made = nn.Conv2d(
        weight.shape[1], weight.shape[0], conv.kernel_size, conv.stride, conv.padding,
        bias=conv.bias is not None,
    )  # fmt: skip
    made.weight.data = weight.clone()
    if conv.bias is not None:
        made.bias.data = conv.bias.detach().clone()
    return made


def narrowed(generator: nn.Module, kept: list[int]) -> nn.Module:
    """Return a copy whose ``feat_128`` has the channels ``kept`` alone, not fitted to anything.

    Both halves of its gate, its normalisation, the excitation that multiplies it and the last
    convolution lose the same channels.
    """
    made = copy.deepcopy(generator).eval()
    for module in made.modules():
        if isinstance(module, ConvTypes) and norm_kind(module) != "none":
            fold(module)
    block = made.get_submodule("synthesis.feat_128")
    gate = made.get_submodule("synthesis.se_128.main")
    half = block[5].out_channels // 2
    both = [*kept, *(half + k for k in kept)]
    block[5] = _cut(block[5], outputs=both)
    norm = nn.BatchNorm2d(len(both)).eval()
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).data = getattr(block[7], name).detach()[torch.tensor(both)].clone()
    block[7] = norm
    gate[3] = _cut(gate[3], outputs=kept)
    made.synthesis.to_big = _cut(made.synthesis.to_big, inputs=kept)
    return made
