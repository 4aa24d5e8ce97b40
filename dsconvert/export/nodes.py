"""What the passes over a torch.fx graph share: looking at nodes, and replacing them."""

from __future__ import annotations

from typing import Any

from torch import fx, nn


def sized(node: Any) -> tuple[int, ...] | None:
    """The shape of a node's value in the example run."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    shape = getattr(meta, "shape", None)
    return None if shape is None else tuple(shape)


def module_of(module: fx.GraphModule, node: Any) -> nn.Module | None:
    """The module that ``node`` calls, if it calls one."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return module.get_submodule(str(node.target))
    return None


def replace_node(graph: fx.Graph, node: fx.Node, by: Any) -> None:
    """Let ``by`` stand for ``node`` everywhere, and take ``node`` out."""
    node.replace_all_uses_with(by)
    graph.erase_node(node)


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads ``node``, if it is one."""
    return next(iter(node.users)) if len(node.users) == 1 else None
