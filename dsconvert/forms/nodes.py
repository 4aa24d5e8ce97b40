"""Inspect, replace and erase nodes of a torch.fx graph."""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from dsconvert.errors import ExportError
from dsconvert.model.one_dimensional import Conv2dTypes
from dsconvert.model.plain_layers import computes_as


@dataclass(frozen=True, kw_only=True)
class ValueFacts:
    """Shape and type of a node's value in the example run."""

    shape: torch.Size
    dtype: torch.dtype


class Shapes(fx.Interpreter):
    """Runs a graph once and records the shape of each tensor; torch's own prints a traceback."""

    def run_node(self, n: fx.Node) -> Any:
        """See :class:`torch.fx.Interpreter`.

        Raises:
            ExportError: the node fails.
        """
        try:
            result = super().run_node(n)
        except Exception as error:
            text = str(error).strip().splitlines()
            raise ExportError(
                f"the flat graph of this model fails at {n.name} ({n.op} of {n.target}): "
                f"{type(error).__name__}: {text[0] if text else error!r}."
            ) from error
        if isinstance(result, Tensor):
            n.meta["tensor_meta"] = ValueFacts(shape=result.shape, dtype=result.dtype)
        return result


def sized(node: Any) -> tuple[int, ...] | None:
    """Return the shape of a node's value in the example run."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    shape = getattr(meta, "shape", None)
    return None if shape is None else tuple(shape)


def module_of(module: fx.GraphModule, node: Any) -> nn.Module | None:
    """Return the module that ``node`` calls, or None."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return module.get_submodule(str(node.target))
    return None


def layer_of(module: fx.GraphModule, node: Any, *kinds: type[nn.Module]) -> Any:
    """Return the layer that ``node`` calls, if its parameters say all that it does; or None.

    It is of one of ``kinds`` (by default a two-dimensional convolution), without code of its own
    or parametrisations, and it is called with a map alone, without an ``output_size``.
    """
    layer = module_of(module, node)
    if layer is None or len(node.args) != 1 or node.kwargs or parametrize.is_parametrized(layer):
        return None
    return layer if computes_as(layer, *(kinds or Conv2dTypes)) else None


def changeable(module: fx.GraphModule) -> frozenset[nn.Module]:
    """Return the modules whose parameters may change with one call: nothing else reads them.

    Others are called twice, belong to a module that is called as a whole, or have a parameter that
    the graph reads by itself (tied weights, a demodulation).
    """
    uses: Counter[nn.Module] = Counter()
    for node in module.graph.nodes:
        called = module_of(module, node)
        if called is not None:
            uses.update(called.modules())
        elif node.op == "get_attr":
            owner = str(node.target).rpartition(".")[0]
            uses[module.get_submodule(owner)] += 1
    return frozenset(m for m, times in uses.items() if times == 1)


def replace_node(graph: fx.Graph, node: fx.Node, by: Any) -> None:
    """Replace ``node`` by ``by`` everywhere, and erase it."""
    node.replace_all_uses_with(by)
    graph.erase_node(node)


def only_user(node: fx.Node) -> fx.Node | None:
    """Return the only reader of ``node``, or None."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def drop_dead(graph: fx.Graph) -> None:
    """Erase nodes without readers; unlike torch.fx's own pass, keep those that write in place.

    ``y[:, :2] = 0`` and ``y.mul_(2)`` are recorded as values without readers.
    """
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op != "output" and not (node.is_impure() or _writes(node)):
            graph.erase_node(node)


def _writes(node: fx.Node) -> bool:
    if node.op == "call_module":
        owner = _module(node)
        return owner is not None and getattr(owner, "inplace", False) is True
    if node.op not in ("call_method", "call_function"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    operator_in_place = getattr(node.target, "__module__", "") == "_operator" and (
        name in ("setitem", "delitem") or (name[:1] == "i" and name[1:] in dir(operator))
    )
    return (
        in_place
        or operator_in_place
        or _asks_in_place(node)
        or (node.kwargs.get("out") is not None)
    )


def _asks_in_place(node: fx.Node) -> bool:
    """Return whether an option ``inplace`` is True, by name or (``F.relu(x, True)``) by place."""
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"] is True
    try:
        place = list(inspect.signature(node.target).parameters).index("inplace")  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a method's name, a function of C, or one without the option
        return False
    return place < len(node.args) and node.args[place] is True


def _module(node: fx.Node) -> nn.Module | None:
    """Return the module of a ``call_module`` node, if the graph knows its owner."""
    owner = node.graph.owning_module
    try:
        return None if owner is None else owner.get_submodule(str(node.target))
    except AttributeError:
        return None
