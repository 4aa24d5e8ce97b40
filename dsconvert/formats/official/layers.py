"""torch.nn classes a snapshot may hold, each built by its constructor from checked attributes.

Everything is built on the meta device: parameters come from the file, so that nothing is
initialised twice. The classes in ``LAYERS`` are also those that may be written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from dsconvert.errors import CorruptSnapshotError
from dsconvert.safepickle import list_of, plain_number, tuple_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Pair = tuple[int, int]

LIMIT = 1 << 20
"""Upper bound of every channel count, kernel size, stride, ... in a file."""
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
_META: Any = {"device": "meta"}


class Attributes:
    """The plain attributes of a module in a file, read with a type and a range each."""

    def __init__(self, values: Mapping[str, Any], tensors: frozenset[str], where: str) -> None:
        self._values = values
        self.tensors = tensors
        """Names of the parameters and buffers that the file has a tensor for."""
        self.where = where

    def fail(self, name: str, wanted: str) -> CorruptSnapshotError:
        """Return an error about one attribute."""
        return CorruptSnapshotError(
            f"{self.where} has an attribute {name!r} that is no {wanted}. The file is damaged or "
            "was not written by the official code."
        )

    def value(self, name: str, kinds: tuple[type, ...], wanted: str, default: Any = None) -> Any:
        """Return an attribute of exactly one of the types; ``default`` where it is missing."""
        if name not in self._values and default is not None:
            return default
        value = plain_number(self._values.get(name))
        if type(value) not in kinds:
            raise self.fail(name, wanted)
        return value

    def integer(self, name: str, *, low: int = 1, high: int = LIMIT) -> int:
        """Return a whole number within bounds."""
        value = self.value(name, (int,), "whole number")
        if not low <= value <= high:
            raise self.fail(name, f"whole number from {low} to {high}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Return a bool; old files may lack it."""
        return self.value(name, (bool,), "bool", default)

    def real(self, name: str, *, default: float | None = None, optional: bool = False) -> Any:
        """Return a finite number (or None where ``optional``)."""
        if optional and self._values.get(name) is None:
            return None
        value = self.value(name, (int, float), "number", default)
        if not -1e30 < value < 1e30:
            raise self.fail(name, "finite number")
        return value

    def ints(self, name: str, *, low: int = 0, count: int = 2) -> Any:
        """Return a tuple of ``count`` whole numbers."""
        value = self._values.get(name)
        values = (value,) * count if type(value) is int else tuple_of(value) or list_of(value)
        if values is None or len(values) != count:
            raise self.fail(name, f"tuple of {count} whole numbers")
        if not all(type(v) is int and low <= v <= LIMIT for v in values):
            raise self.fail(name, f"tuple of {count} whole numbers from {low} to {LIMIT}")
        return tuple(values)

    def choice(self, name: str, allowed: tuple[str, ...], default: str) -> Any:
        """Return one of some words."""
        value = self.value(name, (str,), "word", default)
        if value not in allowed:
            raise self.fail(name, f"one of {', '.join(allowed)}")
        return value

    def padding(self) -> Any:
        """Return ``"same"``, ``"valid"`` or two numbers."""
        value = self._values.get("padding")
        return value if value in ("same", "valid") else self.ints("padding")

    def groups(self, inputs: int, outputs: int) -> int:
        """Return a number of groups that divides both channel counts."""
        groups = self.integer("groups")
        if inputs % groups or outputs % groups:
            raise self.fail("groups", "divisor of the channel counts")
        return groups

    def scale(self, name: str) -> Any:
        """Return None, a number, or a pair of numbers."""
        value = self._values.get(name)
        if value is None or (type(value) in (int, float) and 0 < value <= LIMIT):
            return value
        values = tuple_of(value) or list_of(value) or ()
        if len(values) == 2 and all(type(v) in (int, float) and 0 < v <= LIMIT for v in values):
            return tuple(values)
        raise self.fail(name, "scale")


def _conv(a: Attributes) -> nn.Module:
    inputs, outputs = a.integer("in_channels"), a.integer("out_channels")
    return nn.Conv2d(
        inputs,
        outputs,
        a.ints("kernel_size", low=1),
        stride=a.ints("stride", low=1),
        padding=a.padding(),
        dilation=a.ints("dilation", low=1),
        groups=a.groups(inputs, outputs),
        bias="bias" in a.tensors,
        padding_mode=a.choice("padding_mode", _PADDING_MODES, "zeros"),
        **_META,
    )


def _conv_transpose(a: Attributes) -> nn.Module:
    inputs, outputs = a.integer("in_channels"), a.integer("out_channels")
    return nn.ConvTranspose2d(
        inputs,
        outputs,
        a.ints("kernel_size", low=1),
        stride=a.ints("stride", low=1),
        padding=a.ints("padding"),
        output_padding=a.ints("output_padding"),
        dilation=a.ints("dilation", low=1),
        groups=a.groups(inputs, outputs),
        bias="bias" in a.tensors,
        padding_mode=a.choice("padding_mode", ("zeros",), "zeros"),
        **_META,
    )


def _batch_norm(a: Attributes) -> nn.Module:
    return nn.BatchNorm2d(
        a.integer("num_features"),
        eps=a.real("eps"),
        momentum=a.real("momentum", optional=True),
        affine=a.flag("affine", True),
        track_running_stats=a.flag("track_running_stats", True),
        **_META,
    )


def _group_norm(a: Attributes) -> nn.Module:
    channels = a.integer("num_channels")
    groups = a.integer("num_groups")
    if channels % groups:
        raise a.fail("num_groups", "divisor of num_channels")
    return nn.GroupNorm(groups, channels, a.real("eps"), a.flag("affine", True), **_META)


def _upsample(a: Attributes) -> nn.Module:
    modes = ("nearest", "nearest-exact", "bilinear", "bicubic")
    # recompute_scale_factor and align_corners do not exist in older files.
    return nn.Upsample(
        size=a.scale("size"),
        scale_factor=a.scale("scale_factor"),
        mode=a.choice("mode", modes, "nearest"),
        align_corners=a.value("align_corners", (bool, type(None)), "bool"),
        recompute_scale_factor=a.value("recompute_scale_factor", (bool, type(None)), "bool"),
    )


def _linear(a: Attributes) -> nn.Module:
    return nn.Linear(
        a.integer("in_features"), a.integer("out_features"), bias="bias" in a.tensors, **_META
    )


def _embedding(a: Attributes) -> nn.Module:
    rows = a.integer("num_embeddings")
    padding = a.value("padding_idx", (int, type(None)), "row number")
    if padding is not None and not 0 <= padding < rows:
        raise a.fail("padding_idx", "row number")
    # Not by the constructor: it draws normal numbers, which on the meta device imports a second's
    # worth of torch.
    return cast("Any", nn.Embedding).from_pretrained(
        torch.empty(rows, a.integer("embedding_dim"), device="meta"),
        freeze=False,
        padding_idx=padding,
        max_norm=a.real("max_norm", optional=True),
        norm_type=a.real("norm_type", default=2.0),
        scale_grad_by_freq=a.flag("scale_grad_by_freq", False),
        sparse=a.flag("sparse", False),
    )


def _adaptive_pool(a: Attributes) -> nn.Module:
    return nn.AdaptiveAvgPool2d(a.ints("output_size", low=1))


def _avg_pool(a: Attributes) -> nn.Module:
    return nn.AvgPool2d(
        a.ints("kernel_size", low=1),
        a.ints("stride", low=1),
        a.ints("padding"),
        a.flag("ceil_mode", False),
        a.flag("count_include_pad", True),
    )


def _inplace(cls: type[nn.Module]) -> Callable[[Attributes], nn.Module]:
    return lambda a: cls(inplace=a.flag("inplace", False))


def _plain(cls: type[nn.Module]) -> Callable[[Attributes], nn.Module]:
    return lambda _: cls()


LAYERS: dict[str, Callable[[Attributes], nn.Module]] = {
    "Conv2d": _conv,
    "ConvTranspose2d": _conv_transpose,
    "BatchNorm2d": _batch_norm,
    "GroupNorm": _group_norm,
    "Upsample": _upsample,
    "Linear": _linear,
    "Embedding": _embedding,
    "AdaptiveAvgPool2d": _adaptive_pool,
    "AvgPool2d": _avg_pool,
    "ReLU": _inplace(nn.ReLU),
    "ReLU6": _inplace(nn.ReLU6),
    "SiLU": _inplace(nn.SiLU),
    "LeakyReLU": lambda a: nn.LeakyReLU(a.real("negative_slope"), a.flag("inplace", False)),
    "Sigmoid": _plain(nn.Sigmoid),
    "Tanh": _plain(nn.Tanh),
    "GELU": lambda a: nn.GELU(a.choice("approximate", ("none", "tanh"), "none")),
    "GLU": lambda a: nn.GLU(a.integer("dim", low=-4, high=4)),
    "PixelShuffle": lambda a: nn.PixelShuffle(a.integer("upscale_factor", high=64)),
    "ZeroPad2d": lambda a: nn.ZeroPad2d(a.ints("padding", count=4)),
    "ReflectionPad2d": lambda a: nn.ReflectionPad2d(a.ints("padding", count=4)),
    "Identity": _plain(nn.Identity),
    "Sequential": _plain(nn.Sequential),
    "ModuleList": _plain(nn.ModuleList),
    "ModuleDict": _plain(nn.ModuleDict),
    "Module": _plain(nn.Module),
}
"""Class name (below ``torch.nn.modules``) to the function that builds it."""

CONTAINERS = frozenset({"Sequential", "ModuleList", "ModuleDict", "Module"})


def is_layer(module: str, name: str) -> bool:
    """Return whether this is a torch.nn class that can be built and written."""
    return name in LAYERS and (module == "torch.nn" or module.startswith("torch.nn.modules."))
