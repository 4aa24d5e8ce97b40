"""Carry the labels of channels through the operations of a graph.

Every node runs once on example inputs, so shapes and numbers are known. An operation that only
moves data (reshape, concatenation, indexing) is applied to a tensor of labels; an elementwise one
unites the labels of its arguments; a module without a weight per channel is run on a part of its
channels, and passes if the result is that part of its output. Other operations lock the channels
that reach them: these stay, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from dsconvert.model.graph import TracedGraph
from dsconvert.model.node_runner import NodeRunner
from dsconvert.width.channels import Channels
from dsconvert.width.functions import state_of_function
from dsconvert.width.labels import Axis
from dsconvert.width.modules import state_of_module
from dsconvert.width.states import State, States


class Follower:
    """One pass over a graph; :meth:`run` returns the :class:`Channels`.

    Args:
        model: a copy that may be run; in eval mode, norms folded.
        traced: its graph.
        locked: modules whose channels stay, with the reason.
    """

    def __init__(self, model: nn.Module, traced: TracedGraph, locked: Mapping[str, str]) -> None:
        self._model, self._graph, self._locked = model, traced.graph, locked
        self._constants = traced.constants
        self._runner = NodeRunner(model, traced.graph, traced.constants)
        self._known = States()

    def run(self, arguments: list[Tensor]) -> Channels:
        """Run the graph on the tensors of one call's arguments."""
        known, last = self._known, dict[fx.Node, fx.Node]()
        for node in self._graph.nodes:
            for used in node.all_input_nodes:
                last[used] = node
        given = iter(arguments)
        for node in self._graph.nodes:
            if node.op == "output":
                known.lock(node, "they are the model's output")
                break
            if node.op == "placeholder":
                known.values[node], state = next(given), None
            else:
                torch.manual_seed(0)
                known.values[node] = self._runner.value(node, known.values)
                state = self._state(node)
            known.states[node] = state
            if isinstance(state, Axis):
                known.channels.values[node] = state
                known.channels.sizes[node] = known.values[node].numel()
            for used in node.all_input_nodes:
                if last[used] is node and isinstance(known.values.get(used), Tensor):
                    known.values.pop(used)
        return known.channels

    def _state(self, node: fx.Node) -> State:
        name = str(node.target)
        if node.op == "get_attr":
            return self._parameter(name, self._known.values[node])
        if node.op == "call_module":
            module = self._model.get_submodule(name)
            return state_of_module(self._known, node, module, self._locked.get(name))
        return state_of_function(self._known, node)

    def _parameter(self, name: str, value: object) -> Axis | None:
        """Return the axis of a parameter that ``forward`` reads: its first dimension above one.

        None for a single number, which serves all channels alike.
        """
        if name in self._constants or not isinstance(value, Tensor) or value.numel() < 2:
            return None
        channels = self._known.channels
        if name not in channels.tensors:
            dim = next(i for i, n in enumerate(value.shape) if n > 1)
            channels.tensors[name] = Axis(dim, channels.labels.new(value.shape[dim]))
            if (why := self._locked.get(name.rpartition(".")[0])) is not None:
                channels.labels.lock(channels.tensors[name].labels, why)
        return channels.tensors[name]
