"""Bring the modules of official files into the layout of our classes, and check them.

The official classes keep a layer's kernel in the layer itself; ours keep it in a child (see
:mod:`~dsconvert_adapters.stylegan3.architecture`). A file that dsconvert wrote has our layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from . import architecture
from .restore_layers import (
    MAX_RESOLUTION,
    Problem,
    check_widths,
    has,
    restore_demodulation,
    restore_fully_connected,
    restore_input,
    restore_layer,
    sizes_of,
    stray_in,
    tensor_shape,
)

_MAX_LAYERS = 100


def _mapping(module: architecture.MappingNetwork) -> Problem:
    if not 1 <= module.num_layers <= _MAX_LAYERS:
        return f"has {module.num_layers} layers"
    layers = [f"fc{i}" for i in range(module.num_layers)]
    stray = stray_in(module, set(), {"w_avg"}, {"embed", "embed_proj", *layers})
    if stray is not None:
        return stray
    inside: Any = module
    width, mean = module.z_dim, (module.w_dim,)
    if module.c_dim:
        # StyleGAN-XL: a table of features, a projection, and a mean of w for each class.
        by_class = has(module, "embed_proj", architecture.FullyConnectedLayer)
        last = "embed_proj" if by_class else "embed"
        inputs = module.c_dim
        if by_class:
            if not has(module, "embed", nn.Embedding):
                return "has a projection of classes without their features"
            features: Any = inside.embed
            if features.num_embeddings < module.c_dim:
                return "has features of fewer classes than it has"
            inputs, mean = int(features.embedding_dim), (module.c_dim, module.w_dim)
        if (wrong := check_widths(module, last, inputs, None)) is not None:
            return wrong
        width += inside._modules[last].out_features
    for name in layers:
        if (wrong := check_widths(module, name, width, None)) is not None:
            return wrong
        width = inside._modules[name].out_features
    if width != module.w_dim:
        return "ends in another width than w_dim"
    return None if tensor_shape(inside._buffers, "w_avg") == mean else "has no usable w_avg"


def _synthesis(module: architecture.SynthesisNetwork) -> Problem:
    side = module.img_resolution
    if not 4 <= side <= MAX_RESOLUTION or side & (side - 1):
        return "has an img_resolution that is no power of two from 4 to 8192"
    inside: Any = module
    names = [name for name in inside._modules if name != "input"]
    if (stray := stray_in(module, set(), set(), {"input", *names})) is not None:
        return stray
    if not has(module, "input", architecture.SynthesisInput):
        return "lacks input"
    if not 1 <= len(names) <= _MAX_LAYERS:
        return f"has {len(names)} layers"
    layers: list[Any] = [inside._modules[name] for name in names]
    width = module.input.channels
    for i, (name, layer) in enumerate(zip(names, layers, strict=True)):
        if not isinstance(layer, architecture.SynthesisLayer):
            return f"has a {name} that is no layer"
        if layer.is_torgb != (i == len(layers) - 1):
            return f"has a layer {name} that makes the image, or none that does"
        if layer.in_channels != width:
            return f"has a layer {name} that does not fit the one before"
        width = layer.out_channels
    if any(m.affine.in_features != module.w_dim for m in (module.input, *layers)):
        return "has a layer for another w_dim"
    if width != module.img_channels:
        return "makes images of other channels"
    found = sizes_of(dict(zip(names, layers, strict=True)), side)
    if found is None:
        return f"has layers whose sizes do not lead to {side} pixels"
    # The first layer keeps the size.
    if found != sizes_of({names[0]: layers[0]}, found) or module.input.side not in (None, found):
        return "has an input of another size"
    module.input.side = found
    module.count()
    return None


def _generator(module: architecture.Generator) -> Problem:
    if not has(module, "synthesis", architecture.SynthesisNetwork):
        return "has no synthesis network of StyleGAN3"
    if not has(module, "mapping", architecture.MappingNetwork):
        return "has no mapping network of StyleGAN3"
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
    architecture.SynthesisInput: restore_input,
    architecture.SynthesisLayer: restore_layer,
    architecture.Demodulation: restore_demodulation,
    architecture.SynthesisNetwork: _synthesis,
    architecture.Generator: _generator,
    architecture.SuperresGenerator: _generator,
}


def restored(module: nn.Module) -> Problem:
    """Bring one module that was read from a file into our layout.

    Returns:
        its defect, or None.
    """
    return _CHECKS[type(module)](module)
