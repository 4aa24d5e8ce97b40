"""The arguments of a module's call in the order of its ``forward``: of ``conv(input=x)``, too."""

from __future__ import annotations

import inspect
from typing import Any

from torch import fx, nn


def in_order(module: nn.Module, args: Any, named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call by position, and those that can only be given by name.

    Args:
        module: its ``forward`` says the order.
        args: arguments of the call by position.
        named: arguments of the call by name.
    """
    if not named:
        return tuple(args), {}
    bound = inspect.signature(module.forward).bind(*args, **named)
    return bound.args, bound.kwargs


def by_position(graph: fx.Graph, model: nn.Module) -> None:
    """Give every call of a module in ``graph``, a graph of ``model``, its arguments by position.

    The readers of a graph look for the input of a layer in the first place.
    """
    for node in graph.nodes:
        if node.op == "call_module" and node.kwargs:
            called = model.get_submodule(str(node.target))
            node.args, node.kwargs = in_order(called, node.args, node.kwargs)
