"""Bring single layers of official files into the layout of our classes, and check them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from . import architecture

Problem = str | None
MAX_RESOLUTION = 8192


def is_side(size: int) -> bool:
    """Return whether an image may have so many pixels a side: a power of two from 4."""
    return 4 <= size <= MAX_RESOLUTION and not size & (size - 1)


def shape_of(store: dict[str, Any], name: str) -> tuple[int, ...] | None:
    """Return the shape of a stored tensor, or None."""
    value = store.get(name)
    return tuple(value.shape) if isinstance(value, Tensor) else None


def stray_in(
    module: nn.Module, parameters: set[str], buffers: set[str], children: set[str]
) -> Problem:
    """Return a problem if ``module`` holds anything beside these names."""
    inside: Any = module
    given = {
        *(inside._parameters.keys() - parameters),
        *(inside._buffers.keys() - buffers),
        *(inside._modules.keys() - children),
    }
    return f"holds {', '.join(sorted(given))}, which its class never has" if given else None


def has(module: nn.Module, name: str, kind: type[nn.Module]) -> bool:
    """Return whether the child ``name`` is a ``kind``."""
    return isinstance(module._modules.get(name), kind)


def restore_fully_connected(module: architecture.FullyConnectedLayer) -> Problem:
    """Set the sizes of a fully connected layer."""
    if (stray := stray_in(module, {"weight", "bias"}, set(), set())) is not None:
        return stray
    inside: Any = module
    shape = shape_of(inside._parameters, "weight")
    if shape is None or len(shape) != 2 or not all(shape):
        return "has no usable weight"
    module.out_features, module.in_features = shape
    if "bias" not in inside._parameters:
        module.register_parameter("bias", None)
    if shape_of(inside._parameters, "bias") not in (None, shape[:1]):
        return "has a bias of the wrong size"
    return _activation(module)


def _activation(module: Any) -> Problem:
    known = architecture.ACTIVATIONS
    return None if module.activation in known else f"has an activation that is none of {set(known)}"


def check_widths(module: Any, name: str, inp: int | None, out: int | None) -> Problem:
    """Return a problem if the fully connected child ``name`` has other sizes."""
    layer = module._modules.get(name)
    if not isinstance(layer, architecture.FullyConnectedLayer):
        return f"lacks {name}"
    if inp not in (None, layer.in_features) or out not in (None, layer.out_features):
        return f"has a layer {name} of the wrong size"
    return None


def restore_filter(module: nn.Module) -> Problem:
    """Make a separable resampling filter two-dimensional."""
    inside: Any = module
    shape = shape_of(inside._buffers, "resample_filter")
    if shape is not None and len(shape) == 1 and 8 <= shape[0] <= 64:
        # A filter of eight taps and more is kept as one direction of a separable one.
        taps = inside._buffers["resample_filter"]
        inside._buffers["resample_filter"] = taps[:, None] * taps[None, :]
    elif shape is None or len(shape) != 2 or shape[0] != shape[1] or shape[0] > 64:
        return "has no usable resample_filter"
    if inside._buffers["resample_filter"].shape[0] % 2:
        return "has a resample filter of odd length, which no official configuration uses"
    return None


def restore_layer(module: architecture.SynthesisLayer) -> Problem:
    """Move kernel and noise of an official layer into children, and check them."""
    inside: Any = module
    parameters, buffers = inside._parameters, inside._buffers
    if module.up not in (1, 2) or not 4 <= module.resolution <= MAX_RESOLUTION:
        return "has an up or a resolution that does not exist"
    if "demod" not in inside._modules:
        stray = stray_in(
            module,
            {"weight", "bias", "noise_strength"},
            {"resample_filter", "noise_const"},
            {"affine"},
        )
        shape = shape_of(parameters, "weight")
        if stray is not None or shape is None or shape[2:] != (3, 3):
            return stray or "has no 3x3 kernel"
        noise = None
        if module.use_noise:
            noise = architecture.Noise.__new__(architecture.Noise)
            nn.Module.__init__(noise)
            strength, plane = (
                parameters.pop("noise_strength", None),
                buffers.pop("noise_const", None),
            )
            if strength is None or plane is None:
                return "lacks noise_strength or noise_const"
            noise.weight = strength
            noise.register_buffer("noise_const", plane)
            if (wrong := restore_noise(noise)) is not None:
                return wrong
        module.grow(parameters.pop("weight"), noise)
    children = {"affine", "demod", "noise"}
    if (stray := stray_in(module, {"bias"}, {"resample_filter"}, children)) is not None:
        return stray
    if not has(module, "demod", architecture.Demodulation):
        return "has no kernel"
    outs = _outputs(module.demod.conv)
    if outs is None or module.demod.gain.shape != (outs,):
        return "has a kernel that is neither dense nor a separable pair"
    if shape_of(parameters, "bias") != (outs,):
        return "has no bias of the kernel's size"
    if module.use_noise:
        if not has(module, "noise", architecture.Noise):
            return "lacks its noise"
        if module.noise.noise_const.shape != (module.resolution, module.resolution):
            return "has noise of another resolution"
    wrong = check_widths(module, "affine", None, module.in_channels)
    return wrong or restore_filter(module) or _activation(module)


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


def restore_noise(module: architecture.Noise) -> Problem:
    """Check a noise injection."""
    inside: Any = module
    stray = stray_in(module, {"weight"}, {"noise_const"}, set())
    if stray is None and shape_of(inside._parameters, "weight") != ():
        return "has no scalar noise strength"
    shape = shape_of(inside._buffers, "noise_const")
    if stray is None and (shape is None or len(shape) != 2):
        return "has no plane of noise"
    return stray


def restore_demodulation(module: architecture.Demodulation) -> Problem:
    """Check a demodulation."""
    inside: Any = module
    if "conv" not in inside._modules or shape_of(inside._buffers, "gain") is None:
        return "lacks its kernel or its gain"
    return stray_in(module, set(), {"gain"}, {"conv"})


def restore_rgb(module: architecture.ToRGBLayer) -> Problem:
    """Move the kernel of an official layer that makes the image into a child, and check it."""
    inside: Any = module
    parameters = inside._parameters
    if "conv" not in inside._modules:
        if (stray := stray_in(module, {"weight", "bias"}, set(), {"affine"})) is not None:
            return stray
        weight, bias = shape_of(parameters, "weight"), shape_of(parameters, "bias")
        if weight is None or weight[2:] != (1, 1):
            return "has no 1x1 kernel"
        if bias != weight[:1]:
            return "has no bias of the kernel's size"
        module.grow(parameters.pop("weight"), parameters.pop("bias"))
    stray = stray_in(module, set(), set(), {"affine", "conv"}) or _pointwise(module)
    return stray or check_widths(module, "affine", None, module.in_channels)


def restore_skip(module: architecture.Conv2dLayer) -> Problem:
    """Move the kernel of an official skip connection into a child, and check it."""
    inside: Any = module
    parameters = inside._parameters
    if module.up != 2 or module.activation != "linear":
        return "is no 1x1 convolution that upsamples"
    if "conv" not in inside._modules:
        if parameters.get("bias") is not None:
            return "has a bias, which a skip never has"
        parameters.pop("bias", None)
        if (stray := stray_in(module, {"weight"}, {"resample_filter"}, set())) is not None:
            return stray
        shape = shape_of(parameters, "weight")
        if shape is None or shape[2:] != (1, 1):
            return "is no 1x1 convolution that upsamples"
        module.grow(parameters.pop("weight"))
    stray = stray_in(module, set(), {"resample_filter"}, {"conv"})
    return stray or _pointwise(module) or restore_filter(module)


def _pointwise(module: Any) -> Problem:
    """Check the 1x1 convolution of a layer, and complete the scale of its inputs."""
    conv = module._modules.get("conv")
    if type(conv) is not nn.Conv2d or conv.kernel_size != (1, 1) or conv.groups != 1:
        return "has a kernel that is no 1x1 convolution"
    if module.scale is None:
        module.scale = 1 / math.sqrt(module.in_channels)
    return None if 0 < module.scale <= 1 else "has a scale that is not above 0 and up to 1"
