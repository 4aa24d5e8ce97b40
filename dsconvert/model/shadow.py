"""The values of a torch.fx graph on fake tensors: shapes, types and devices, but no data.

While a model is traced, a shadow decides branches on such facts of a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dsconvert.model.node_runner import NodeRunner


class Unknown:
    """The value of a node that depends on the data of a tensor."""


UNKNOWN = Unknown()


class Shadow:
    """The values of a graph's nodes on fake tensors, each computed when it is first needed.

    Args:
        model: a copy of the traced model on which the nodes run.
        tensors: the example inputs.
        grow: added to the batch size of the example inputs.
    """

    def __init__(self, model: nn.Module, tensors: Sequence[Tensor], grow: int) -> None:
        self._model = model
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._values: dict[fx.Node, Any] = {}
        self._runner: NodeRunner | None = None
        batch = tensors[0].shape[0] if tensors and tensors[0].dim() else None
        self._inputs = [self._fake(t, batch, grow) for t in tensors]

    def _fake(self, tensor: Tensor, batch: int | None, grow: int) -> Tensor:
        shape = list(tensor.shape)
        if shape and shape[0] == batch:
            shape[0] += grow
        with self._mode:
            return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)

    def value(self, graph: fx.Graph, wanted: fx.Node) -> Any:
        """Return the value of ``wanted``, or :data:`UNKNOWN`."""
        if self._runner is None:
            self._runner = NodeRunner(self._model, graph)
        placeholders = 0
        for node in graph.nodes:
            if node not in self._values:
                self._values[node] = (
                    self._inputs[placeholders]
                    if node.op == "placeholder"
                    else self._step(self._runner, node)
                )
            placeholders += node.op == "placeholder"
            if node is wanted:
                break
        return self._values.get(wanted, UNKNOWN)

    def _step(self, runner: NodeRunner, node: fx.Node) -> Any:
        if any(self._values.get(n, UNKNOWN) is UNKNOWN for n in node.all_input_nodes):
            return UNKNOWN
        try:
            with self._mode, torch.no_grad():
                return runner.value(node, self._values)
        except Exception:  # an operator that needs data raises errors of any class
            return UNKNOWN
