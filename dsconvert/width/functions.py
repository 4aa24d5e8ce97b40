"""The labels of the results of functions and tensor methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx
from torch.fx.node import map_arg

from dsconvert.width.labels import Axis
from dsconvert.width.movement import axis_of
from dsconvert.width.operations import ELEMENTWISE, MOVING, REDUCING, SPATIAL, reduced_dims
from dsconvert.width.states import State, States

_FIXED_SIZE = "combined with values of fixed size"


def state_of_function(known: States, node: fx.Node) -> State:
    """Return the state of a ``call_function`` or ``call_method`` node."""
    value, axes = known.values[node], known.axes(node)
    if not axes or not _holds_tensors(value):
        return None
    name = _name_of(node)
    if name in MOVING:
        return moved(known, node, lambda *a, **k: _call(node, a, k))
    made: Axis | None = None
    if isinstance(value, Tensor):
        if name in ELEMENTWISE:
            made = _united(known, node, value)
        elif name in SPATIAL or _depthwise(known, node, name, value):
            made = _unchanged(known, node, value)
        elif name in REDUCING:
            made = _reduced(known, node, value)
        elif name == "linear":
            made = _rows_of_linear(known, node, value)
        elif name == "glu":
            made = halves(known, axes[0], value)
        elif name == "pixel_shuffle":
            made = shuffled(known, axes[0], value)
    if made is None:
        known.lock(node, f"{name} uses them in a way that is not followed")
    return made


def moved(known: States, node: fx.Node, call: Callable[..., Any]) -> State:
    """Return the state of an operation that only moves data: ``call`` runs on labels."""
    given = map_arg(node.args, known.filled)
    named = map_arg(node.kwargs, known.filled)
    name = _name_of(node)
    try:
        made = call(*given, **named)
    except Exception:  # an operator that refuses integers may raise any error
        known.lock(node, f"{name} does not run on labels")
        return None
    states = tuple(axis_of(m) for m in made) if isinstance(made, tuple | list) else axis_of(made)
    if states is False or (isinstance(states, tuple) and False in states):
        known.lock(node, f"{name} spreads them over several dimensions")
        return None
    return states


def halves(known: States, axis: Axis, value: Tensor) -> Axis | None:
    """Unite both halves of a gate; ``value`` is its result."""
    size = len(axis.labels) // 2
    if value.ndim <= axis.dim or value.shape[axis.dim] != size:
        return None
    first, second = axis.labels[:size], axis.labels[size:]
    known.channels.labels.unite(first, second, "one half of a gate has a fixed size")
    return Axis(axis.dim, first)


def shuffled(known: States, axis: Axis, value: Tensor) -> Axis | None:
    """Unite the r^2 neighbouring channels that a pixel shuffle makes one channel of."""
    size = value.shape[axis.dim]
    if axis.dim != 1 or len(axis.labels) % size:
        return None
    parts = axis.labels.reshape(size, -1)
    for i in range(1, parts.shape[1]):
        known.channels.labels.unite(parts[:, 0], parts[:, i], "shuffled with fixed values")
    return Axis(1, parts[:, 0])


def _united(known: States, node: fx.Node, value: Tensor) -> Axis | None:
    """Unite the labels of all arguments of an elementwise operation."""
    places: dict[fx.Node, int] = {}
    found: dict[fx.Node, Axis] = {}
    for used in node.all_input_nodes:
        state, tensor = known.states[used], known.values[used]
        if isinstance(state, Axis):
            places[used], found[used] = state.dim - tensor.ndim, state
        elif isinstance(state, tuple):
            return None
    labels = known.channels.labels
    back = min(places.values())
    if max(places.values()) != back:
        # A parameter at another place than the channels, such as a noise plane (H, W), keeps its
        # size. Of parameters alone, the first dimension is that of channels.
        layers = {places[used] for used, axis in found.items() if known.channels.written(axis)}
        if len(layers) > 1:
            return None
        back = next(iter(layers), back)
        for used in [used for used, place in places.items() if place != back]:
            labels.lock(found.pop(used).labels, "they are no channels")
    size = value.shape[back]
    whole = [axis.labels for axis in found.values() if len(axis.labels) == size]
    if not whole:
        return None
    for axis in found.values():
        if len(axis.labels) != size:
            labels.lock(axis.labels, "one channel is combined with all others")
    for other in whole[1:]:
        labels.unite(whole[0], other, _FIXED_SIZE)
    for used in node.all_input_nodes:
        tensor = known.values[used]
        if used in found or not isinstance(tensor, Tensor):
            continue
        if tensor.ndim >= -back and tensor.shape[back] != 1:
            labels.lock(whole[0], _FIXED_SIZE)
    return Axis(value.ndim + back, whole[0])


def _unchanged(known: States, node: fx.Node, value: Tensor) -> Axis | None:
    """Return the axis of an operation within each channel."""
    axis = known.first(node)
    if axis is None or len(known.axes(node)) != 1:
        return None
    same = value.ndim > axis.dim and value.shape[axis.dim] == len(axis.labels)
    return axis if same else None


def _depthwise(known: States, node: fx.Node, name: str, value: Tensor) -> bool:
    """Return whether a functional convolution filters each channel by a fixed kernel."""
    if not name.startswith(("conv1d", "conv2d", "conv_transpose")) or known.first(node) is None:
        return False
    groups = node.kwargs.get("groups")
    if isinstance(groups, fx.Node):
        groups = known.values[groups]
    return bool(groups == value.shape[1])


def _reduced(known: States, node: fx.Node, value: Tensor) -> Axis | None:
    axis, first = known.first(node), node.args[0]
    if axis is None or not isinstance(first, fx.Node):
        return None
    before: Tensor = known.values[first]
    dims = reduced_dims(node, before.ndim)
    if dims is None or axis.dim in dims:
        return None
    kept = value.ndim == before.ndim
    return Axis(axis.dim if kept else axis.dim - sum(d < axis.dim for d in dims), axis.labels)


def _rows_of_linear(known: States, node: fx.Node, value: Tensor) -> Axis | None:
    """Return the outputs of a linear layer whose weight ``forward`` computes from a parameter.

    Its rows may be removed. Its inputs stay: the weight is scaled by their number (an equalised
    learning rate) or otherwise depends on all of them.
    """
    given = (*node.args, node.kwargs.get("weight"), node.kwargs.get("bias"))
    nodes = [a for a in given if isinstance(a, fx.Node)]
    weight = known.states.get(nodes[1]) if len(nodes) > 1 else None
    if not isinstance(weight, Axis) or weight.dim != 0:
        return None
    labels = known.channels.labels
    if isinstance(read := known.states[nodes[0]], Axis):
        labels.lock(read.labels, "a linear layer reads them by a weight that forward computes")
    if value.shape[-1] != len(weight.labels):
        return None
    if len(nodes) > 2:
        bias = known.states.get(nodes[2])
        if not isinstance(bias, Axis):
            return None
        labels.unite(weight.labels, bias.labels, "the bias has a fixed size")
    return Axis(value.ndim - 1, weight.labels)


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds_tensors(v) for v in value)
    return isinstance(value, Tensor)


def _name_of(node: fx.Node) -> str:
    name = str(getattr(node.target, "__name__", node.target))
    return name if name.startswith("__") else name.rstrip("_")


def _call(node: fx.Node, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **named)
    target: Any = node.target
    return target(*args, **named)
