"""Remove channels from modules, in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import Narrows
from dsconvert.model.norms import fold, norm_kind
from dsconvert.model.one_dimensional import Convolution, TransposedTypes

_COUNTS = (
    "num_features", "num_channels", "num_groups", "num_parameters", "output_size", "out_features",
    "in_features", "normalized_shape", "channels", "in_channels", "out_channels", "groups",
)  # fmt: skip
"""Attributes that say how many channels a module has."""


def has_entries(module: nn.Module, size: int) -> bool:
    """Return whether a parameter or buffer in ``module`` has one entry for each of ``size``."""
    tensors = (*module.parameters(), *module.buffers())
    return size > 1 and any(_entry_dim(t, size) is not None for t in tensors)


def _entry_dim(tensor: Tensor, size: int) -> int | None:
    """Return the first dimension above one if it has ``size`` entries: (C,), (1, C, 1, 1)."""
    dim = next((i for i, n in enumerate(tensor.shape) if n > 1), None)
    return dim if dim is not None and tensor.shape[dim] == size else None


def slice_entries(module: nn.Module, kept: Tensor, size: int) -> None:
    """Keep the entries ``kept`` of everything in ``module`` with ``size`` entries."""
    if isinstance(module, Narrows):
        module.narrow(kept)
        return
    for part in module.modules():
        if norm_kind(part) != "none":
            fold(part)
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None and (dim := _entry_dim(tensor, size)) is not None:
                    table[name] = _taken(tensor, dim, kept)  # type: ignore[assignment]
        set_counts(part, size, len(kept))


def set_counts(module: nn.Module, before: int, after: int, *, inputs: bool = True) -> None:
    """Correct the attributes of ``module`` that say how many channels it has.

    Args:
        module: is changed in place.
        before: the number of channels so far.
        after: the number of channels now.
        inputs: whether its inputs are among them; otherwise an equal number of inputs stays.
    """
    for name in _COUNTS:
        if name.startswith("in_") and not inputs:
            continue
        if vars(module).get(name) == before and type(vars(module)[name]) is int:
            setattr(module, name, after)


def slice_rows(layer: nn.Module, kept: Tensor) -> None:
    """Keep the outputs ``kept`` of a convolution (ungrouped) or a linear layer, norm folded."""
    fold(layer)
    layer.weight = _taken(_weight(layer), _row_dim(layer), kept)
    bias = layer._parameters.get("bias")
    if bias is not None:
        layer.bias = _taken(bias, 0, kept)
    setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(kept))


def slice_columns(layer: nn.Module, kept: Tensor) -> None:
    """Keep the inputs ``kept`` of a convolution (ungrouped) or a linear layer, norm folded."""
    fold(layer)
    layer.weight = _taken(_weight(layer), 1 - _row_dim(layer), kept)
    setattr(layer, "in_features" if isinstance(layer, nn.Linear) else "in_channels", len(kept))


def slice_depthwise(conv: Convolution, kept: Tensor) -> None:
    """Keep the inputs ``kept`` of a depthwise convolution, each with all of its outputs."""
    fold(conv)
    times = conv.out_channels // conv.in_channels
    rows = (kept[:, None] * times + torch.arange(times, device=kept.device)).flatten()
    transposed = isinstance(conv, TransposedTypes)
    conv.weight = _taken(conv.weight, 0, kept if transposed else rows)
    if conv.bias is not None:
        conv.bias = _taken(conv.bias, 0, rows)
    conv.in_channels = conv.groups = len(kept)
    conv.out_channels = len(rows)


def zero_columns(layer: nn.Module, dropped: Tensor) -> None:
    """Let a layer ignore the inputs ``dropped``; it keeps its shape."""
    fold(layer)
    with torch.no_grad():
        weight = _weight(layer)
        weight.index_fill_(1 - _row_dim(layer), dropped.to(weight.device), 0.0)


def _weight(layer: nn.Module) -> nn.Parameter:
    return layer.get_parameter("weight")


def _row_dim(layer: nn.Module) -> int:
    return 1 if isinstance(layer, TransposedTypes) else 0


def _taken(tensor: Tensor, dim: int, kept: Tensor) -> Any:
    made = tensor.detach().index_select(dim, kept.to(tensor.device)).clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made
