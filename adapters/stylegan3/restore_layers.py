"""Bring single layers of official files into the layout of our classes, and check them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from . import architecture

Problem = str | None
MAX_RESOLUTION = 8192
_ACTIVATIONS = ("linear", "lrelu")
_FACTORS = (1, 2, 4, 8)
_MAX_TAPS = 128
_NAME = re.compile(r"L\d{1,3}_(\d{1,5})_\d{1,6}", re.ASCII)


def tensor_shape(store: dict[str, Any], name: str) -> tuple[int, ...] | None:
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


def check_widths(module: Any, name: str, inp: int | None, out: int | None) -> Problem:
    """Return a problem if the fully connected child ``name`` has other sizes."""
    layer = module._modules.get(name)
    if not isinstance(layer, architecture.FullyConnectedLayer):
        return f"lacks {name}"
    if inp not in (None, layer.in_features) or out not in (None, layer.out_features):
        return f"has a layer {name} of the wrong size"
    return None


def restore_fully_connected(module: architecture.FullyConnectedLayer) -> Problem:
    """Set the sizes of a fully connected layer."""
    if (stray := stray_in(module, {"weight", "bias"}, set(), set())) is not None:
        return stray
    inside: Any = module
    shape = tensor_shape(inside._parameters, "weight")
    if shape is None or len(shape) != 2 or not all(shape):
        return "has no usable weight"
    module.out_features, module.in_features = shape
    if "bias" not in inside._parameters:
        module.register_parameter("bias", None)
    if tensor_shape(inside._parameters, "bias") not in (None, shape[:1]):
        return "has a bias of the wrong size"
    known = module.activation in _ACTIVATIONS
    return None if known else f"has an activation that is none of {', '.join(_ACTIVATIONS)}"


def restore_input(module: architecture.SynthesisInput) -> Problem:
    """Move the kernel of the Fourier features into a child, and check them."""
    inside: Any = module
    buffers, children = {"transform", "freqs", "phases"}, {"affine", "conv"}
    if "conv" not in inside._modules:
        if (stray := stray_in(module, {"weight"}, buffers, {"affine"})) is not None:
            return stray
        shape = tensor_shape(inside._parameters, "weight")
        if shape is None or len(shape) != 2 or not all(shape):
            return "has no usable weight"
        weight = inside._parameters.pop("weight")
        module.conv = architecture.kernel_of(
            nn.Parameter(weight.detach()[:, :, None, None], requires_grad=weight.requires_grad)
        )
        module.scale = 1 / math.sqrt(shape[1])
    if (stray := stray_in(module, set(), buffers, children)) is not None:
        return stray
    if not _is_pointwise(module.conv):
        return "has a kernel that is no 1x1 convolution"
    waves = module.conv.in_channels
    wanted = {"transform": (3, 3), "freqs": (waves, 2), "phases": (waves,)}
    for name, shape in wanted.items():
        if tensor_shape(inside._buffers, name) != shape:
            return f"has no usable {name}"
    side: Any = module.side
    if side is not None and (type(side) is not int or not 1 <= side <= 2 * MAX_RESOLUTION):
        return "has a size that does not exist"
    scale: Any = module.scale  # None where a file lacks it
    if scale is None or not 0 < scale <= 1:
        return "has a scale that is not above 0 and up to 1"
    if not 0 < 2 * module.bandwidth < module.sampling_rate:
        return "has a bandwidth that its sampling rate can't carry"
    return check_widths(module, "affine", None, 4)


def restore_layer(module: architecture.SynthesisLayer) -> Problem:
    """Move the kernel of an official layer into a child, and check it."""
    inside: Any = module
    kernel, buffers = "conv" if module.is_torgb else "demod", {"magnitude_ema"}
    filters = {"up_filter", "down_filter"}
    if kernel not in inside._modules:
        stray = stray_in(module, {"weight", "bias"}, buffers | filters, {"affine"})
        shape = tensor_shape(inside._parameters, "weight")
        if stray is not None or shape is None or len(shape) != 4 or not all(shape):
            return stray or "has no kernel"
        if shape[2] != shape[3] or shape[2] not in (1, 3) or (module.is_torgb and shape[2] != 1):
            return "has a kernel that is neither 1x1 nor 3x3"
        if tensor_shape(inside._parameters, "bias") != shape[:1]:
            return "has no bias of the kernel's size"
        module.grow(inside._parameters.pop("weight"), inside._parameters.pop("bias"))
    own = set[str]() if module.is_torgb else {"bias"}
    if (stray := stray_in(module, own, buffers | filters, {"affine", kernel})) is not None:
        return stray
    if tensor_shape(inside._buffers, "magnitude_ema") != ():
        return "has no magnitude_ema"
    wrong = _kernel(module) or check_widths(module, "affine", None, module.in_channels)
    return wrong or _resampling(module)


def _kernel(module: Any) -> Problem:
    if module.is_torgb:
        if not _is_pointwise(module.conv) or module.conv.bias is None:
            return "has a kernel that is no 1x1 convolution with a bias"
        scaled = module.scale is not None and 0 < module.scale <= 1
        return None if scaled else "has a scale that is not above 0 and up to 1"
    if not has(module, "demod", architecture.Demodulation):
        return "has no kernel"
    outs = _outputs(module.demod.conv)
    if outs is None or tuple(module.demod.gain.shape) != (outs,):
        return "has a kernel that is neither dense nor a separable pair"
    fits = tensor_shape(module._parameters, "bias") == (outs,)
    return None if fits else "has no bias of the kernel's size"


def _is_pointwise(conv: Any) -> bool:
    return type(conv) is nn.Conv2d and conv.kernel_size == (1, 1) and conv.groups == 1


def _outputs(conv: Any) -> int | None:
    if isinstance(conv, nn.Conv2d):
        return conv.out_channels
    if isinstance(conv, nn.Sequential):
        if list(conv._modules) not in (["depthwise", "pointwise"], ["pointwise", "depthwise"]):
            return None
        first: Any = conv[0]
        last: Any = conv[1]
        fits = isinstance(first, nn.Conv2d) and isinstance(last, nn.Conv2d)
        return last.out_channels if fits and first.out_channels == last.in_channels else None
    return None


def _resampling(module: Any) -> Problem:
    """Check factors, padding and filters of a layer, and complete the filters."""
    if module.up_factor not in _FACTORS or module.down_factor not in _FACTORS:
        return "has an up_factor or a down_factor that does not exist"
    pads = module.padding
    if len(pads) != 4 or not all(type(p) is int and abs(p) <= 2 * MAX_RESOLUTION for p in pads):
        return "has a padding that is not four whole numbers"
    if pads[:2] != pads[2:]:
        return "has another padding for columns than for rows, which no official layer has"
    for name in ("up_filter", "down_filter"):
        shape = tensor_shape(module._buffers, name)
        if shape is None:
            module._buffers[name] = None
        elif len(shape) not in (1, 2) or not 1 <= shape[0] <= _MAX_TAPS or shape[0] != shape[-1]:
            return f"has no usable {name}"
        elif len(shape) == 2 and name == "up_filter":
            return "has an up_filter of two dimensions, which no official layer has"
    return None


def restore_demodulation(module: architecture.Demodulation) -> Problem:
    """Check a demodulation."""
    inside: Any = module
    if "conv" not in inside._modules or tensor_shape(inside._buffers, "gain") is None:
        return "lacks its kernel or its gain"
    return stray_in(module, set(), {"gain"}, {"conv"})


def _extent(layer: Any) -> int:
    """Return the kernel size of a layer."""
    if layer.is_torgb:
        return 1
    conv = layer.demod.conv
    return max(c.kernel_size[0] for c in (list(conv.children()) or [conv]))


def _taps(fir: Tensor | None) -> int:
    return 1 if fir is None else int(fir.shape[0])


def sizes_of(layers: Mapping[str, Any], side: int) -> int | None:
    """Return the size of the map that the first layer reads, for images of ``side`` pixels.

    None: names, factors, paddings and filters of the layers do not lead there.
    """
    for name in reversed(list(layers)):
        layer = layers[name]
        # Its own size is part of a layer's name.
        if (named := _NAME.fullmatch(name)) is None or int(named[1]) != side:
            return None
        # The inverse of: up, pad, filter, filter, keep every down-th sample.
        between = (side - 1) * layer.down_factor + _taps(layer.down_filter)
        total = between + _taps(layer.up_filter) - 1 - layer.padding[0] - layer.padding[1]
        if total % layer.up_factor:
            return None
        side = total // layer.up_factor - (_extent(layer) - 1)
        if not 1 <= side <= 2 * MAX_RESOLUTION:
            return None
    return side
