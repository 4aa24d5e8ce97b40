"""The labels of the results of modules."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from dsconvert.adapter import Narrows
from dsconvert.model.graph import ConvTypes
from dsconvert.width.functions import halves, moved, shuffled
from dsconvert.width.labels import FIXED, Axis
from dsconvert.width.probe import part_of_channels
from dsconvert.width.states import State, States


def state_of_module(known: States, node: fx.Node, module: nn.Module, why: str | None) -> State:
    """Return the state of a ``call_module`` node.

    Args:
        known: of the nodes before.
        node: the call.
        module: what it calls.
        why: the reason why this module keeps its channels, or None.
    """
    name, value = str(node.target), known.values[node]
    if isinstance(module, (*ConvTypes, nn.Linear)) and isinstance(value, Tensor):
        return _layer(known, node, module, why)
    axes = known.axes(node)
    if not axes:
        return None
    if isinstance(module, nn.Flatten | nn.Unflatten | nn.Identity | nn.PixelUnshuffle):
        return moved(known, node, module)
    made: Axis | None = None
    axis = known.first(node)
    if isinstance(module, Narrows):
        made = None if why else _declared(known, node, module)
    elif axis is not None and len(axes) == 1 and isinstance(value, Tensor) and why is None:
        if isinstance(module, nn.PixelShuffle):
            made = shuffled(known, axis, value)
        else:
            made = _probed(known, node, module, axis, value)
    if made is None:
        reason = why or f"{name}, a {type(module).__name__}, does not work channel by channel"
        known.lock(node, reason)
    return made


def _layer(known: States, node: fx.Node, module: Any, why: str | None) -> Axis | None:
    """Handle a convolution or a linear layer: new rows, and columns that read its input."""
    value: Tensor = known.values[node]
    channels, labels, name = known.channels, known.channels.labels, str(node.target)
    linear = isinstance(module, nn.Linear)
    inputs = module.in_features if linear else module.in_channels
    outputs = module.out_features if linear else module.out_channels
    out = value.ndim - 1 if linear else 1
    axis = known.first(node)
    columns = np.full(inputs, FIXED, dtype=np.int64)
    if axis is not None:
        # A linear layer reads the last dimension of its input, which has as many as its output.
        if axis.dim == out:
            columns = axis.labels
        else:
            labels.lock(axis.labels, f"{name} reads them along another dimension")
    groups = 1 if linear else module.groups
    if groups > 1 and groups == inputs and why is None:
        # Depthwise: every output belongs to one input.
        channels.put(channels.entries, name, columns)
        return Axis(out, columns.repeat(outputs // inputs))
    rows = channels.rows.get(name)
    if rows is None:
        rows = channels.put(channels.rows, name, labels.new(outputs))
    channels.put(channels.columns, name, columns)
    if groups > 1 and why is None:
        why = f"{name} is a grouped convolution"
    if why is not None:
        labels.lock(rows, why)
        labels.lock(columns, why)
    return Axis(out, rows)


def _declared(known: States, node: fx.Node, module: Narrows) -> Axis | None:
    """Return the axis that a module itself says its result has."""
    given = node.args[module.channels_of] if len(node.args) > module.channels_of else None
    axis = known.states.get(given) if isinstance(given, fx.Node) else None
    value: Tensor = known.values[node]
    if not isinstance(axis, Axis) or value.ndim <= axis.dim:
        return None
    if value.shape[axis.dim] != len(axis.labels):
        return None
    known.channels.put(known.channels.entries, str(node.target), axis.labels)
    return axis


def _probed(
    known: States, node: fx.Node, module: nn.Module, axis: Axis, value: Tensor
) -> Axis | None:
    """Run a module on a part of the channels; see :mod:`dsconvert.width.probe`."""
    args = map_arg(node.args, known.values.__getitem__)
    named = map_arg(node.kwargs, known.values.__getitem__)
    found = part_of_channels(module, args, named, axis.dim)
    if found is None:
        return None
    if found.entries:
        known.channels.put(known.channels.entries, str(node.target), axis.labels)
    return halves(known, axis, value) if found.halves else axis
