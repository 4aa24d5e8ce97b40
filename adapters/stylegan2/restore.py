"""Bring the modules of official files into the layout of our classes, and check them.

The official classes keep a layer's kernel and noise in the layer itself; ours keep them in children
(see :mod:`~dsconvert_adapters.stylegan2.architecture`). A file that dsconvert wrote has our layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from . import architecture
from .restore_layers import (
    Problem,
    check_widths,
    has,
    is_side,
    restore_demodulation,
    restore_filter,
    restore_fully_connected,
    restore_layer,
    restore_noise,
    restore_rgb,
    restore_skip,
    shape_of,
    stray_in,
)

_MAX_LAYERS = 100


def _mapping(module: architecture.MappingNetwork) -> Problem:
    if not 1 <= module.num_layers <= _MAX_LAYERS:
        return f"has {module.num_layers} layers"
    layers = [f"fc{i}" for i in range(module.num_layers)]
    stray = stray_in(module, set(), {"w_avg"}, {"embed", *layers})
    if stray is not None:
        return stray
    width: int | None = module.z_dim
    if module.c_dim:
        if (wrong := check_widths(module, "embed", module.c_dim, None)) is not None:
            return wrong
        width = module.z_dim + module.embed.out_features
    inside: Any = module
    for name in layers:
        if (wrong := check_widths(module, name, width, None)) is not None:
            return wrong
        width = inside._modules[name].out_features
    if width != module.w_dim:
        return "ends in another width than w_dim"
    if module.w_avg_beta is not None and shape_of(inside._buffers, "w_avg") != (module.w_dim,):
        return "has no usable w_avg"
    if "w_avg" not in inside._buffers:
        module.w_avg_beta = None
        module.register_buffer("w_avg", inside.fc0.weight.new_zeros(module.w_dim))
    return None


def _block(module: architecture.SynthesisBlock) -> Problem:
    inside: Any = module
    children = {"conv0", "conv1", "torgb", "skip"}
    if (stray := stray_in(module, {"const"}, {"resample_filter"}, children)) is not None:
        return stray
    if module.architecture not in ("skip", "resnet", "orig"):
        return "has an architecture that is none of skip, resnet, orig"
    module.count()
    need: dict[str, type[nn.Module]] = {"conv1": architecture.SynthesisLayer}
    if module.in_channels:
        need["conv0"] = architecture.SynthesisLayer
        if module.architecture == "resnet":
            need["skip"] = architecture.Conv2dLayer
    if module.num_torgb:
        need["torgb"] = architecture.ToRGBLayer
    lost = [name for name, kind in need.items() if not has(module, name, kind)]
    if lost:
        return f"lacks {', '.join(lost)}"
    # A narrower generator has other numbers of channels than one width a block.
    inner, width = module.conv1.in_channels, module.conv1.out_channels
    if module.conv1.up != 1:
        return "has a conv1 that changes the size"
    if not module.in_channels:
        side = module.resolution
        if shape_of(inside._parameters, "const") != (inner, side, side):
            return "has no usable const"
    else:
        module.in_channels = module.conv0.in_channels
        wanted = {"conv0": (module.in_channels, inner), "skip": (module.in_channels, width)}
        for name in need.keys() & wanted.keys():
            layer: Any = inside._modules[name]
            if layer.up != 2 or (layer.in_channels, layer.out_channels) != wanted[name]:
                return f"has a {name} of the wrong size"
    if module.num_torgb and (module.torgb.in_channels, module.torgb.out_channels) != (
        width,
        module.img_channels,
    ):
        return "has a torgb of the wrong size"
    for name, kind in need.items():
        if kind is not architecture.Conv2dLayer:
            layer = inside._modules[name]
            if layer.affine.in_features != module.w_dim:
                return f"has a {name} for another w_dim"
            if kind is architecture.SynthesisLayer and layer.resolution != module.resolution:
                return f"has a {name} of another resolution"
    return restore_filter(module)


def _synthesis(module: architecture.SynthesisNetwork) -> Problem:
    side = module.img_resolution
    if not is_side(side):
        return "has an img_resolution that is no power of two from 4 to 8192"
    inside: Any = module
    names = [f"b{r}" for r in module.resolutions()]
    if (stray := stray_in(module, set(), set(), set(names))) is not None:
        return stray
    width = 0
    for name, resolution in zip(names, module.resolutions(), strict=True):
        block = inside._modules.get(name)
        if not isinstance(block, architecture.SynthesisBlock):
            return f"lacks {name}"
        facts = (block.in_channels, block.resolution, block.w_dim, block.img_channels)
        if facts != (width, resolution, module.w_dim, module.img_channels):
            return f"has a block {name} that does not fit the one before"
        if block.is_last != (resolution == side):
            return f"has a block {name} that is last by mistake"
        width = block.conv1.out_channels
    module.count()
    return None


def _generator(module: architecture.Generator) -> Problem:
    if not has(module, "synthesis", architecture.SynthesisNetwork):
        return "has no synthesis network of StyleGAN2"
    if not has(module, "mapping", architecture.MappingNetwork):
        return "has no mapping network of StyleGAN2"
    synthesis, mapping = module.synthesis, module.mapping
    module.num_ws = synthesis.num_ws
    ours = (module.w_dim, module.img_resolution, module.img_channels)
    if ours != (synthesis.w_dim, synthesis.img_resolution, synthesis.img_channels):
        return "has a synthesis network of other dimensions"
    if (module.z_dim, module.c_dim, module.w_dim, module.num_ws) != (
        mapping.z_dim,
        mapping.c_dim,
        mapping.w_dim,
        mapping.num_ws,
    ):
        return "has a mapping network of other dimensions"
    return stray_in(module, set(), set(), {"synthesis", "mapping"})


_CHECKS: dict[type[nn.Module], Callable[[Any], Problem]] = {
    architecture.FullyConnectedLayer: restore_fully_connected,
    architecture.MappingNetwork: _mapping,
    architecture.SynthesisLayer: restore_layer,
    architecture.Noise: restore_noise,
    architecture.Demodulation: restore_demodulation,
    architecture.ToRGBLayer: restore_rgb,
    architecture.Conv2dLayer: restore_skip,
    architecture.SynthesisBlock: _block,
    architecture.SynthesisNetwork: _synthesis,
    architecture.Generator: _generator,
}


def restored(module: nn.Module) -> Problem:
    """Bring one module that was read from a file into our layout.

    Returns:
        its defect, or None.
    """
    return _CHECKS[type(module)](module)
