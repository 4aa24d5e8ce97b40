"""The discriminator as the official code pickles it, for the official tools and trainer.

The writer only names the official classes (and those of timm 0.4.12, which wrote the backbone) and
imports none: empty classes replace them while the file is written. Tensors are shared, not copied.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from dsconvert.projected.discriminator import (
    DownBlock,
    Head,
    HeadCond,
    Heads,
    ProjectedDiscriminator,
    SeparableConv2d,
)
from dsconvert.projected.projector import RESOLUTIONS


class _Projected(nn.Module):
    pass


class _Projector(nn.Module):
    pass


class _Fusion(nn.Module):
    pass


class _Add(nn.Module):
    pass


class _Separable(nn.Module):
    pass


class _Inverted(nn.Module):
    pass


class _ConvSame(nn.Conv2d):
    pass


FOREIGN: dict[tuple[str, str], type[nn.Module]] = {
    ("pg_modules.discriminator", "ProjectedDiscriminator"): _Projected,
    ("pg_modules.discriminator", "MultiScaleD"): Heads,
    ("pg_modules.discriminator", "SingleDisc"): Head,
    ("pg_modules.discriminator", "SingleDiscCond"): HeadCond,
    ("pg_modules.projector", "F_RandomProj"): _Projector,
    ("pg_modules.blocks", "DownBlock"): DownBlock,
    ("pg_modules.blocks", "SeparableConv2d"): SeparableConv2d,
    ("pg_modules.blocks", "FeatureFusionBlock"): _Fusion,
    ("timm.models.efficientnet_blocks", "DepthwiseSeparableConv"): _Separable,
    ("timm.models.efficientnet_blocks", "InvertedResidual"): _Inverted,
    ("timm.models.layers.conv2d_same", "Conv2dSame"): _ConvSame,
    # Every torch since 1.3 knows this name.
    ("torch.nn.quantized.modules.functional_modules", "FloatFunctional"): _Add,
}
"""The names of these classes in the official repository and in timm 0.4.12."""


def official_form(discriminator: ProjectedDiscriminator) -> nn.Module:
    """Return a module for the snapshot writer, with :data:`FOREIGN`; it can't run here."""
    network = discriminator.feature_network
    whole: Any = _Projected()
    whole.diffaug, whole.interp224 = bool(discriminator.augment), discriminator.interp224
    projector: Any = _Projector()
    projector.proj_type, projector.cout, projector.expand = 2, network.cout, network.expand
    projector.CHANNELS, projector.RESOLUTIONS = list(network.channels), list(RESOLUTIONS)
    pretrained: Any = _pretrained(network.pretrained)
    pretrained.RESOLUTIONS, pretrained.CHANNELS = list(RESOLUTIONS), list(network.channels)
    scratch: Any = _scratch(network.scratch, expand=network.expand)
    scratch.CHANNELS = list(network.channels)
    projector.pretrained, projector.scratch = pretrained, scratch
    whole.feature_network = projector.train(False)
    whole.discriminator = discriminator.discriminator
    return whole


def _ccm(scratch: nn.Module) -> list[Any]:
    return [scratch.get_submodule(f"layer{i}_ccm") for i in range(4)]


def _scratch(scratch: nn.Module, *, expand: bool) -> nn.Module:
    made: Any = nn.Module()
    for i, mixing in enumerate(_ccm(scratch)):
        made.add_module(f"layer{i}_ccm", mixing)
    for i in (3, 2, 1, 0):
        fusion: Any = _Fusion()
        fusion.deconv, fusion.align_corners, fusion.expand = False, True, expand and i > 0
        fusion.out_conv = scratch.get_submodule(f"layer{i}_csm.out_conv")
        fusion.skip_add = _Add()
        fusion.skip_add.activation_post_process = nn.Identity()
        made.add_module(f"layer{i}_csm", fusion)
    return made


def _pretrained(pretrained: nn.Module) -> nn.Module:
    made: Any = nn.Module()
    for i in range(4):
        layer: Any = pretrained.get_submodule(f"layer{i}")
        parts: list[nn.Module] = []
        for part in layer:
            if isinstance(part, nn.Sequential):
                parts.append(nn.Sequential(*(_block(b) for b in part)))
            elif isinstance(part, nn.Conv2d):
                parts.append(_conv(part))
            elif isinstance(part, nn.BatchNorm2d):
                parts.append(_norm(part))
            else:  # the stem's activation, which newer versions of timm have in the norm
                parts.append(nn.ReLU6(inplace=True))
        made.add_module(f"layer{i}", nn.Sequential(*parts))
    return made


def _block(block: Any) -> nn.Module:
    inverted = hasattr(block, "conv_pwl")
    made: Any = _Inverted() if inverted else _Separable()
    made.has_residual = bool(getattr(block, "has_skip", getattr(block, "has_residual", False)))
    made.drop_path_rate = 0.0
    if not inverted:
        made.has_pw_act = False
    order = ("conv_pw", "conv_dw", "conv_pwl") if inverted else ("conv_dw", "conv_pw")
    for i, name in enumerate(order, 1):
        last = i == len(order)
        if last and not inverted:
            made.se = nn.Identity()
        made.add_module(name, _conv(getattr(block, name)))
        made.add_module(f"bn{i}", _norm(getattr(block, f"bn{i}")))
        if not last:
            made.add_module(f"act{i}", nn.ReLU6(inplace=True))
            if inverted and i == 2:
                made.se = nn.Identity()
        elif not inverted:
            made.add_module(f"act{i}", nn.Identity())
    return made


def _conv(conv: nn.Conv2d) -> nn.Module:
    made: Any = copy.copy(conv)
    made.__class__ = nn.Conv2d if type(conv) is nn.Conv2d else _ConvSame
    return made


def _norm(norm: Any) -> nn.Module:
    with torch.device("meta"):
        made: Any = nn.BatchNorm2d(norm.num_features, eps=norm.eps, momentum=norm.momentum)
    for name in ("weight", "bias"):
        made._parameters[name] = norm._parameters[name]
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        made._buffers[name] = norm._buffers[name]
    return made.train(False)
