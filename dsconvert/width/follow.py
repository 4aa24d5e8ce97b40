"""Carry the labels of channels through the operations of a graph.

Every node runs once on example inputs, so shapes and numbers are known. An operation that only
moves data (reshape, concatenation, indexing) is applied to a tensor of labels; an elementwise one
unites the labels of its arguments; a module without a weight per channel is run on a part of its
channels, and passes if the result is that part of its output. What none of these covers locks the
channels that reach it: they stay, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from dsconvert.model.graph import ConvTypes, TracedGraph
from dsconvert.model.model_types import ModelTypes
from dsconvert.model.node_runner import NodeRunner
from dsconvert.width.labels import FIXED, Axis, Ids, Labels
from dsconvert.width.movement import axis_of, label_tensor
from dsconvert.width.operations import ELEMENTWISE, MOVING, REDUCING, SPATIAL, reduced_dims
from dsconvert.width.probe import part_of_channels

State = Any
"""Of a node: an :class:`Axis`, None (no channels that can be removed), or a tuple of states."""


@dataclass
class Channels:
    """The labels at every place of a model where channels can be removed.

    Attributes:
        labels: the union-find.
        rows: per convolution or linear layer, the labels of its outputs.
        columns: per convolution or linear layer, the labels of its inputs.
        entries: per module with parameters for each channel (a normalisation), their labels.
        tensors: per parameter that ``forward`` reads itself, its labelled axis.
        values: per node of the graph, the labelled axis of its value.
        sizes: per such node, the number of elements of its value.
    """

    labels: Labels = field(default_factory=Labels)
    rows: dict[str, Ids] = field(default_factory=dict)
    columns: dict[str, Ids] = field(default_factory=dict)
    entries: dict[str, Ids] = field(default_factory=dict)
    tensors: dict[str, Axis] = field(default_factory=dict)
    values: dict[fx.Node, Axis] = field(default_factory=dict)
    sizes: dict[fx.Node, int] = field(default_factory=dict)

    def put(self, table: dict[str, Ids], name: str, labels: Ids) -> Ids:
        """Store the labels of a module; a second call of it unites both (one weight serves)."""
        if name not in table:
            table[name] = labels
        elif len(table[name]) == len(labels):
            self.labels.unite(table[name], labels, f"{name} also reads other values")
        else:
            for each in (table[name], labels):
                self.labels.lock(each, f"{name} is called with several numbers of channels")
        return table[name]


class Follower:
    """One pass over a graph; :meth:`run` returns the :class:`Channels`.

    Args:
        model: a copy that may be run; in eval mode, norms folded.
        traced: its graph.
        types: classes with a meaning (own normalisations).
        locked: modules whose channels stay, with the reason.
    """

    def __init__(
        self, model: nn.Module, traced: TracedGraph, types: ModelTypes, locked: Mapping[str, str]
    ) -> None:
        self._model, self._graph, self._types, self._locked = model, traced.graph, types, locked
        self._constants = traced.constants
        self._runner = NodeRunner(model, traced.graph, traced.constants)
        self._values: dict[fx.Node, Any] = {}
        self._states: dict[fx.Node, State] = {}
        self.channels = Channels()

    def run(self, arguments: list[Tensor]) -> Channels:
        """Run the graph on the tensors of one call's arguments."""
        last: dict[fx.Node, fx.Node] = {}
        for node in self._graph.nodes:
            for used in node.all_input_nodes:
                last[used] = node
        given = iter(arguments)
        for node in self._graph.nodes:
            if node.op == "output":
                self._lock(node, "they are the model's output")
                break
            if node.op == "placeholder":
                self._values[node] = next(given)
                state = None
            else:
                torch.manual_seed(0)
                self._values[node] = self._runner.value(node, self._values)
                state = self._state(node)
            self._states[node] = state
            if isinstance(state, Axis):
                self.channels.values[node] = state
                self.channels.sizes[node] = self._values[node].numel()
            for used in node.all_input_nodes:
                if last[used] is node and isinstance(self._values.get(used), Tensor):
                    self._values.pop(used)
        return self.channels

    # The arguments of a node.

    def _axes(self, node: fx.Node) -> list[Axis]:
        found: list[Axis] = []

        def collect(state: State) -> None:
            if isinstance(state, Axis):
                found.append(state)
            elif isinstance(state, tuple):
                for each in state:
                    collect(each)

        for used in node.all_input_nodes:
            collect(self._states[used])
        return found

    def _lock(self, node: fx.Node, reason: str) -> None:
        for axis in self._axes(node):
            self.channels.labels.lock(axis.labels, reason)

    def _filled(self, given: Any) -> Any:
        """Return the argument ``given`` with label tensors in place of tensors."""
        if isinstance(given, fx.Node):
            value, state = self._values[given], self._states[given]
            if isinstance(value, Tensor):
                return label_tensor(value.shape, state)
            if isinstance(value, tuple | list):
                states = state if isinstance(state, tuple) else (None,) * len(value)
                made = [
                    label_tensor(v.shape, s) if isinstance(v, Tensor) else v
                    for v, s in zip(value, states, strict=True)
                ]
                return type(value)(made) if type(value) in (tuple, list) else value
            return value
        return given

    # One node.

    def _state(self, node: fx.Node) -> State:
        value = self._values[node]
        if node.op == "get_attr":
            return self._tensor(str(node.target), value)
        if node.op == "call_module":
            return self._module(node, str(node.target), self._model.get_submodule(str(node.target)))
        axes = self._axes(node)
        if not axes or not _holds_tensors(value):
            return None
        name = _name_of(node)
        if name in MOVING:
            return self._moved(node, lambda *a, **k: _call(node, a, k))
        made: Axis | None = None
        if isinstance(value, Tensor):
            if name in ELEMENTWISE:
                made = self._united(node, value)
            elif name in SPATIAL or self._depthwise(node, name, value):
                made = self._unchanged(node, value)
            elif name in REDUCING:
                made = self._reduced(node, value)
            elif name == "glu":
                made = self._halves(axes[0], value)
        if made is None:
            self._lock(node, f"{name} uses them in a way that is not followed")
        return made

    def _tensor(self, name: str, value: Any) -> Axis | None:
        """Return the axis of a parameter that ``forward`` reads: its first dimension above one."""
        if name in self._constants or not isinstance(value, Tensor) or not value.ndim:
            return None
        if name not in self.channels.tensors:
            dim = next((i for i, n in enumerate(value.shape) if n > 1), 0)
            labels = self.channels.labels.new(value.shape[dim])
            self.channels.tensors[name] = Axis(dim, labels)
            if (why := self._locked.get(name.rpartition(".")[0])) is not None:
                self.channels.labels.lock(labels, why)
        return self.channels.tensors[name]

    def _moved(self, node: fx.Node, call: Any) -> State:
        given = map_arg(node.args, self._filled)
        named = map_arg(node.kwargs, self._filled)
        try:
            made = call(*given, **named)
        except Exception:  # an operator that refuses integers
            self._lock(node, f"{_name_of(node)} does not run on labels")
            return None
        states = (
            tuple(axis_of(m) for m in made) if isinstance(made, tuple | list) else axis_of(made)
        )
        if states is False or (isinstance(states, tuple) and False in states):
            self._lock(node, f"{_name_of(node)} spreads them over several dimensions")
            return None
        return states

    def _united(self, node: fx.Node, value: Tensor) -> Axis | None:
        """Unite the labels of all arguments of an elementwise operation."""
        places: list[tuple[int, Axis]] = []
        for used in node.all_input_nodes:
            state, tensor = self._states[used], self._values[used]
            if isinstance(state, Axis):
                places.append((state.dim - tensor.ndim, state))
            elif isinstance(state, tuple):
                return None
        back = places[0][0]
        size = value.shape[back]
        if any(place != back for place, _ in places):
            return None
        labels = self.channels.labels
        whole = [axis.labels for _, axis in places if len(axis.labels) == size]
        if not whole:
            return None
        for _, axis in places:
            if len(axis.labels) != size:  # one channel that all of the others are combined with
                labels.lock(axis.labels, "one channel is combined with all others")
        for other in whole[1:]:
            labels.unite(whole[0], other, "combined with values of fixed size")
        for used in node.all_input_nodes:
            tensor = self._values[used]
            if self._states[used] is not None or not isinstance(tensor, Tensor):
                continue
            if tensor.ndim >= -back and tensor.shape[back] != 1:
                labels.lock(whole[0], "combined with values of fixed size")
        return Axis(value.ndim + back, whole[0])

    def _unchanged(self, node: fx.Node, value: Tensor) -> Axis | None:
        """Return the axis of an operation within each channel."""
        first = node.args[0] if node.args else None
        axis = self._states[first] if isinstance(first, fx.Node) else None
        if not isinstance(axis, Axis) or len(self._axes(node)) != 1:
            return None
        same = value.ndim > axis.dim and value.shape[axis.dim] == len(axis.labels)
        return axis if same else None

    def _depthwise(self, node: fx.Node, name: str, value: Tensor) -> bool:
        """Return whether a functional convolution filters each channel by a fixed kernel."""
        if name not in ("conv2d", "conv_transpose2d") or not isinstance(node.args[0], fx.Node):
            return False
        groups = node.kwargs.get("groups")
        if isinstance(groups, fx.Node):
            groups = self._values[groups]
        return bool(groups == value.shape[1]) and isinstance(self._states[node.args[0]], Axis)

    def _reduced(self, node: fx.Node, value: Tensor) -> Axis | None:
        first = node.args[0] if node.args else None
        axis = self._states[first] if isinstance(first, fx.Node) else None
        if not isinstance(first, fx.Node) or not isinstance(axis, Axis):
            return None
        before: Tensor = self._values[first]
        dims = reduced_dims(node, before.ndim)
        if dims is None or axis.dim in dims:
            return None
        kept = value.ndim == before.ndim
        return Axis(axis.dim if kept else axis.dim - sum(d < axis.dim for d in dims), axis.labels)

    def _halves(self, axis: Axis, value: Tensor) -> Axis | None:
        size = len(axis.labels) // 2
        if value.ndim <= axis.dim or value.shape[axis.dim] != size:
            return None
        first, second = axis.labels[:size], axis.labels[size:]
        self.channels.labels.unite(first, second, "one half of a gate has a fixed size")
        return Axis(axis.dim, first)

    # Modules.

    def _module(self, node: fx.Node, name: str, module: nn.Module) -> State:
        first = node.args[0] if node.args else None
        axis = self._states[first] if isinstance(first, fx.Node) else None
        value = self._values[node]
        why = self._locked.get(name)
        if isinstance(module, (*ConvTypes, nn.Linear)) and isinstance(value, Tensor):
            return self._layer(node, name, module, axis, why)
        axes = self._axes(node)
        if not axes:
            return None
        if isinstance(module, nn.Flatten | nn.Unflatten | nn.Identity | nn.PixelUnshuffle):
            return self._moved(node, module)
        made: Axis | None = None
        if isinstance(axis, Axis) and len(axes) == 1 and isinstance(value, Tensor) and why is None:
            if isinstance(module, nn.PixelShuffle):
                made = self._shuffled(axis, value)
            else:
                made = self._probed(node, name, module, axis, value)
        if made is None:
            reason = why or f"{name}, a {type(module).__name__}, does not work channel by channel"
            self._lock(node, reason)
        return made

    def _layer(
        self, node: fx.Node, name: str, module: Any, axis: State, why: str | None
    ) -> Axis | None:
        """Handle a convolution or a linear layer: new rows, and columns that read ``axis``."""
        value: Tensor = self._values[node]
        linear = isinstance(module, nn.Linear)
        inputs = module.in_features if linear else module.in_channels
        outputs = module.out_features if linear else module.out_channels
        labels = self.channels.labels
        first: Tensor = self._values[node.args[0]]  # type: ignore[index]
        place = first.ndim - 1 if linear else 1
        fixed = torch.full((inputs,), FIXED).numpy()
        columns = axis.labels if isinstance(axis, Axis) and axis.dim == place else fixed
        if isinstance(axis, Axis) and columns is fixed:
            labels.lock(axis.labels, f"{name} reads them along another dimension")
        groups = 1 if linear else module.groups
        if groups > 1 and groups == inputs and why is None:
            # Depthwise: every output belongs to one input.
            tied = columns.repeat(outputs // inputs)
            self.channels.put(self.channels.entries, name, columns)
            return Axis(value.ndim - 1 if linear else 1, tied)
        rows = self.channels.rows.get(name)
        if rows is None:
            rows = self.channels.put(self.channels.rows, name, labels.new(outputs))
        self.channels.put(self.channels.columns, name, columns)
        if groups > 1 and why is None:
            why = f"{name} is a grouped convolution"
        if why is not None:
            labels.lock(rows, why)
            labels.lock(columns, why)
        return Axis(value.ndim - 1 if linear else 1, rows)

    def _shuffled(self, axis: Axis, value: Tensor) -> Axis | None:
        """Every output channel of a pixel shuffle is made of r^2 neighbouring inputs."""
        size = value.shape[axis.dim]
        if axis.dim != 1 or len(axis.labels) % size:
            return None
        parts = axis.labels.reshape(size, -1)
        for i in range(1, parts.shape[1]):
            self.channels.labels.unite(parts[:, 0], parts[:, i], "shuffled with fixed values")
        return Axis(1, parts[:, 0])

    def _probed(
        self, node: fx.Node, name: str, module: nn.Module, axis: Axis, value: Tensor
    ) -> Axis | None:
        """Run a module on a part of the channels; see :mod:`dsconvert.width.probe`."""
        args = map_arg(node.args, self._values.__getitem__)
        named = map_arg(node.kwargs, self._values.__getitem__)
        found = part_of_channels(module, args, named, axis.dim)
        if found is None:
            return None
        if found.entries:
            self.channels.put(self.channels.entries, name, axis.labels)
        if found.halves:
            return self._halves(axis, value)
        return axis


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds_tensors(v) for v in value)
    return isinstance(value, Tensor)


def _name_of(node: fx.Node) -> str:
    name = str(getattr(node.target, "__name__", node.target))
    return name.rstrip("_") if not name.startswith("__") else name


def _call(node: fx.Node, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **named)
    target: Any = node.target
    return target(*args, **named)
