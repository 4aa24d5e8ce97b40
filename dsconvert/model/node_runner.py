"""Run single nodes of a torch.fx graph on values that the caller keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn


class NodeRunner(fx.Interpreter):
    """Runs single nodes of a graph on values that the caller keeps.

    Args:
        model: the modules and parameters of the graph.
        graph: of the nodes.
        constants: values of ``get_attr`` nodes that ``model`` does not have.
    """

    def __init__(
        self, model: nn.Module, graph: fx.Graph, constants: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(model, garbage_collect_values=False, graph=graph)
        self._constants = constants or {}

    def value(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """Run ``node`` on ``values``, which hold those of its arguments."""
        self.env = values
        return self.run_node(node)

    def arguments(
        self, node: fx.Node, values: dict[fx.Node, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of ``node`` by position and by name."""
        self.env = values
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        return tuple(args), kwargs

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """See :class:`torch.fx.Interpreter`; constants come first."""
        if target in self._constants:
            return self._constants[target]
        return super().get_attr(target, args, kwargs)
