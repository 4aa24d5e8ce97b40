"""What official files hold, brought into the layout of our classes, and checked.

The official classes keep a layer's kernel and noise in the layer itself; ours keep them in children
(see :mod:`~dsconvert_adapters.stylegan2.network`). A file that dsconvert wrote has ours already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from . import network

Problem = str | None
MAX_RESOLUTION = 8192


def _shape(store: dict[str, Any], name: str) -> tuple[int, ...] | None:
    value = store.get(name)
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _known(
    module: nn.Module, parameters: set[str], buffers: set[str], children: set[str]
) -> Problem:
    inside: Any = module
    given = {
        *(inside._parameters.keys() - parameters),
        *(inside._buffers.keys() - buffers),
        *(inside._modules.keys() - children),
    }
    return f"holds {', '.join(sorted(given))}, which its class never has" if given else None


def _is(module: nn.Module, name: str, kind: type[nn.Module]) -> bool:
    return isinstance(module._modules.get(name), kind)


def _fully_connected(module: network.FullyConnectedLayer) -> Problem:
    if (stray := _known(module, {"weight", "bias"}, set(), set())) is not None:
        return stray
    inside: Any = module
    shape = _shape(inside._parameters, "weight")
    if shape is None or len(shape) != 2 or not all(shape):
        return "has no usable weight"
    module.out_features, module.in_features = shape
    if "bias" not in inside._parameters:
        module.register_parameter("bias", None)
    if _shape(inside._parameters, "bias") not in (None, shape[:1]):
        return "has a bias of the wrong size"
    return _activation(module)


def _activation(module: Any) -> Problem:
    known = network.ACTIVATIONS
    return None if module.activation in known else f"has an activation that is none of {set(known)}"


def _widths(module: Any, name: str, inp: int | None, out: int | None) -> Problem:
    layer = module._modules.get(name)
    if not isinstance(layer, network.FullyConnectedLayer):
        return f"lacks {name}"
    if inp not in (None, layer.in_features) or out not in (None, layer.out_features):
        return f"has a layer {name} of the wrong size"
    return None


def _mapping(module: network.MappingNetwork) -> Problem:
    layers = [f"fc{i}" for i in range(min(module.num_layers, 100))]
    stray = _known(module, set(), {"w_avg"}, {"embed", *layers})
    if stray is not None or not layers:
        return stray or "has no layers"
    width: int | None = module.z_dim
    if module.c_dim:
        if (wrong := _widths(module, "embed", module.c_dim, None)) is not None:
            return wrong
        width = module.z_dim + module.embed.out_features
    inside: Any = module
    for name in layers:
        if (wrong := _widths(module, name, width, None)) is not None:
            return wrong
        width = inside._modules[name].out_features
    if width != module.w_dim:
        return "ends in another width than w_dim"
    if module.w_avg_beta is not None and _shape(inside._buffers, "w_avg") != (module.w_dim,):
        return "has no usable w_avg"
    if "w_avg" not in inside._buffers:
        module.w_avg_beta = None
        module.register_buffer("w_avg", inside.fc0.weight.new_zeros(module.w_dim))
    return None


def _filter(module: nn.Module) -> Problem:
    inside: Any = module
    shape = _shape(inside._buffers, "resample_filter")
    if shape is not None and len(shape) == 1 and 8 <= shape[0] <= 64:
        # A filter of eight taps and more is kept as one direction of a separable one.
        taps = inside._buffers["resample_filter"]
        inside._buffers["resample_filter"] = taps[:, None] * taps[None, :]
    elif shape is None or len(shape) != 2 or shape[0] != shape[1] or shape[0] > 64:
        return "has no usable resample_filter"
    if inside._buffers["resample_filter"].shape[0] % 2:
        return "has a resample filter of odd length, which no official configuration uses"
    return None


def _layer(module: network.SynthesisLayer) -> Problem:
    inside: Any = module
    parameters, buffers = inside._parameters, inside._buffers
    if module.up not in (1, 2) or not 4 <= module.resolution <= MAX_RESOLUTION:
        return "has an up or a resolution that does not exist"
    if "demod" not in inside._modules:
        stray = _known(
            module,
            {"weight", "bias", "noise_strength"},
            {"resample_filter", "noise_const"},
            {"affine"},
        )
        shape = _shape(parameters, "weight")
        if stray is not None or shape is None or shape[2:] != (3, 3):
            return stray or "has no 3x3 kernel"
        noise = None
        if module.use_noise:
            noise = network.Noise.__new__(network.Noise)
            nn.Module.__init__(noise)
            strength, plane = (
                parameters.pop("noise_strength", None),
                buffers.pop("noise_const", None),
            )
            if strength is None or plane is None:
                return "lacks noise_strength or noise_const"
            noise.weight = strength
            noise.register_buffer("noise_const", plane)
            if (wrong := _noise(noise)) is not None:
                return wrong
        module.grow(parameters.pop("weight"), noise)
    children = {"affine", "demod", "noise"}
    if (stray := _known(module, {"bias"}, {"resample_filter"}, children)) is not None:
        return stray
    if not _is(module, "demod", network.Demodulation):
        return "has no kernel"
    outs = _outputs(module.demod.conv)
    if outs is None or module.demod.gain.shape != (outs,):
        return "has a kernel that is neither dense nor a separable pair"
    module.in_channels, module.out_channels = _inputs(module.demod.conv), outs
    if _shape(parameters, "bias") != (outs,):
        return "has no bias of the kernel's size"
    if module.use_noise:
        if not _is(module, "noise", network.Noise):
            return "lacks its noise"
        if module.noise.noise_const.shape != (module.resolution, module.resolution):
            return "has noise of another resolution"
    wrong = _widths(module, "affine", None, module.in_channels)
    return wrong or _filter(module) or _activation(module)


def _outputs(conv: Any) -> int | None:
    if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d):
        return conv.out_channels
    if isinstance(conv, nn.Sequential):
        names, kinds = list(conv._modules), (nn.Conv2d, nn.ConvTranspose2d)
        if names not in (["depthwise", "pointwise"], ["pointwise", "depthwise"]):
            return None
        first: Any = conv[0]
        last: Any = conv[1]
        fits = isinstance(first, kinds) and isinstance(last, kinds)
        return last.out_channels if fits and first.out_channels == last.in_channels else None
    return None


def _inputs(conv: Any) -> int:
    first: Any = next(conv.children(), conv)
    return int(first.in_channels)


def _noise(module: network.Noise) -> Problem:
    inside: Any = module
    stray = _known(module, {"weight"}, {"noise_const"}, set())
    if stray is None and _shape(inside._parameters, "weight") != ():
        return "has no scalar noise strength"
    shape = _shape(inside._buffers, "noise_const")
    if stray is None and (shape is None or len(shape) != 2):
        return "has no plane of noise"
    return stray


def _demod(module: network.Demodulation) -> Problem:
    inside: Any = module
    if "conv" not in inside._modules or _shape(inside._buffers, "gain") is None:
        return "lacks its kernel or its gain"
    return _known(module, set(), {"gain"}, {"conv"})


def _rgb(module: network.ToRGBLayer) -> Problem:
    inside: Any = module
    shape = _shape(inside._parameters, "weight")
    if shape is None or shape[2:] != (1, 1):
        return "has no 1x1 kernel"
    module.out_channels, module.in_channels = shape[:2]
    if _shape(inside._parameters, "bias") != shape[:1]:
        return "has no bias of the kernel's size"
    stray = _known(module, {"weight", "bias"}, set(), {"affine"})
    return stray or _widths(module, "affine", None, module.in_channels)


def _skip(module: network.Conv2dLayer) -> Problem:
    inside: Any = module
    shape = _shape(inside._parameters, "weight")
    if shape is None or shape[2:] != (1, 1) or module.up != 2 or module.activation != "linear":
        return "is no 1x1 convolution that upsamples"
    if inside._parameters.get("bias") is not None:
        return "has a bias, which a skip never has"
    inside._parameters.pop("bias", None)
    module.out_channels, module.in_channels = shape[:2]
    return _known(module, {"weight"}, {"resample_filter"}, set()) or _filter(module)


def _block(module: network.SynthesisBlock) -> Problem:
    inside: Any = module
    children = {"conv0", "conv1", "torgb", "skip"}
    if (stray := _known(module, {"const"}, {"resample_filter"}, children)) is not None:
        return stray
    if module.architecture not in ("skip", "resnet", "orig"):
        return "has an architecture that is none of skip, resnet, orig"
    module.count()
    need: dict[str, type[nn.Module]] = {"conv1": network.SynthesisLayer}
    if module.in_channels:
        need["conv0"] = network.SynthesisLayer
        if module.architecture == "resnet":
            need["skip"] = network.Conv2dLayer
    if module.num_torgb:
        need["torgb"] = network.ToRGBLayer
    lost = [name for name, kind in need.items() if not _is(module, name, kind)]
    if lost:
        return f"lacks {', '.join(lost)}"
    width = module.conv1.in_channels
    if module.conv1.out_channels != width or module.conv1.up != 1:
        return "has a conv1 that changes the number of channels or the size"
    if not module.in_channels:
        side = module.resolution
        if _shape(inside._parameters, "const") != (width, side, side):
            return "has no usable const"
    else:
        for name in need:
            layer: Any = inside._modules[name]
            if name in ("conv0", "skip") and (
                layer.up != 2
                or (layer.in_channels, layer.out_channels) != (module.in_channels, width)
            ):
                return f"has a {name} of the wrong size"
    if module.num_torgb and (module.torgb.in_channels, module.torgb.out_channels) != (
        width,
        module.img_channels,
    ):
        return "has a torgb of the wrong size"
    for name, kind in need.items():
        if kind is not network.Conv2dLayer:
            layer = inside._modules[name]
            if layer.affine.in_features != module.w_dim:
                return f"has a {name} for another w_dim"
            if kind is network.SynthesisLayer and layer.resolution != module.resolution:
                return f"has a {name} of another resolution"
    return _filter(module)


def _synthesis(module: network.SynthesisNetwork) -> Problem:
    side = module.img_resolution
    if not 4 <= side <= MAX_RESOLUTION or side & (side - 1):
        return "has an img_resolution that is no power of two from 4 to 8192"
    inside: Any = module
    names = [f"b{r}" for r in module.resolutions()]
    if (stray := _known(module, set(), set(), set(names))) is not None:
        return stray
    width = 0
    for name, resolution in zip(names, module.resolutions(), strict=True):
        block = inside._modules.get(name)
        if not isinstance(block, network.SynthesisBlock):
            return f"lacks {name}"
        facts = (block.in_channels, block.resolution, block.w_dim, block.img_channels)
        if facts != (width, resolution, module.w_dim, module.img_channels):
            return f"has a block {name} that does not fit the one before"
        if block.is_last != (resolution == side):
            return f"has a block {name} that is last by mistake"
        width = block.conv1.out_channels
    module.count()
    return None


def _generator(module: network.Generator) -> Problem:
    if not _is(module, "synthesis", network.SynthesisNetwork):
        return "has no synthesis network of StyleGAN2"
    if not _is(module, "mapping", network.MappingNetwork):
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
    return _known(module, set(), set(), {"synthesis", "mapping"})


_CHECKS: dict[type[nn.Module], Callable[[Any], Problem]] = {
    network.FullyConnectedLayer: _fully_connected,
    network.MappingNetwork: _mapping,
    network.SynthesisLayer: _layer,
    network.Noise: _noise,
    network.Demodulation: _demod,
    network.ToRGBLayer: _rgb,
    network.Conv2dLayer: _skip,
    network.SynthesisBlock: _block,
    network.SynthesisNetwork: _synthesis,
    network.Generator: _generator,
}


def restored(module: nn.Module) -> Problem:
    """Bring one module that was read from a file into our layout.

    Returns:
        what is wrong with it, or None.
    """
    return _CHECKS[type(module)](module)
