"""The values and labels of the nodes that a pass over a graph has reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from dsconvert.width.channels import Channels
from dsconvert.width.labels import Axis
from dsconvert.width.movement import label_tensor

State = Any
"""Of a node: an :class:`Axis`, None (no channels that can be removed), or a tuple of states."""


@dataclass
class States:
    """Per node its value on the example inputs, and the labels of its channels."""

    values: dict[fx.Node, Any] = field(default_factory=dict)
    states: dict[fx.Node, State] = field(default_factory=dict)
    channels: Channels = field(default_factory=Channels)

    def axes(self, node: fx.Node) -> list[Axis]:
        """Return the labelled axes of all arguments of ``node``."""
        found: list[Axis] = []

        def collect(state: State) -> None:
            if isinstance(state, Axis):
                found.append(state)
            elif isinstance(state, tuple):
                for each in state:
                    collect(each)

        for used in node.all_input_nodes:
            collect(self.states[used])
        return found

    def first(self, node: fx.Node) -> Axis | None:
        """Return the labelled axis of the first argument."""
        given = node.args[0] if node.args else None
        state = self.states[given] if isinstance(given, fx.Node) else None
        return state if isinstance(state, Axis) else None

    def lock(self, node: fx.Node, reason: str) -> None:
        """Keep all channels that ``node`` reads."""
        for axis in self.axes(node):
            self.channels.labels.lock(axis.labels, reason)

    def filled(self, given: fx.Node) -> Any:
        """Return the value of a node with label tensors in place of tensors."""
        value, state = self.values[given], self.states[given]
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
