"""Record a model as a torch.fx graph.

The trace runs on a copy, since ``forward`` may keep what it computes on the module.
"""

from __future__ import annotations

import operator
import traceback
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from dsconvert.errors import TraceError
from dsconvert.model import copying, shadow
from dsconvert.model import tracer as tracer_module
from dsconvert.model.copying import isolated_copy
from dsconvert.model.one_dimensional import ConvTypes
from dsconvert.model.tracer import Tracer
from dsconvert.util.first_line import first_line

__all__ = ["ConvTypes", "TracedGraph", "convolutional", "trace_graph"]


def convolutional(module: nn.Module) -> bool:
    """Return whether the module is or holds a convolution."""
    return any(isinstance(m, ConvTypes) for m in module.modules())


@dataclass(frozen=True, kw_only=True, eq=False)
class TracedGraph:
    """The operations of a model as torch.fx recorded them.

    Attributes:
        graph: its placeholders are the tensors among the arguments, in order, also those inside
            lists and dictionaries (:func:`dsconvert.model.inputs.tensors_of`).
        opaque: modules that torch.fx did not look into, and why.
        constants: tensors that ``forward`` makes without looking at its arguments; ``get_attr``
            nodes read them under these names, which the model itself does not have.
    """

    graph: fx.Graph
    opaque: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)

    def give_constants(self, model: nn.Module) -> None:
        """Put the constants on ``model``, a copy that is to run as this graph."""
        for name, value in self.constants.items():
            setattr(model, name, value)


def _sentence(model: nn.Module, error: Exception, *, blind: bool) -> str:
    """Return a message with the place of the failure, its cause and a remedy.

    ``blind``: the trace had no example inputs, which decide most branches.
    """
    here = (__file__, tracer_module.__file__, shadow.__file__, copying.__file__)
    frame = next(
        (
            f
            for f in reversed(traceback.extract_tb(error.__traceback__))
            if "/torch/" not in f.filename and f.filename not in here
        ),
        None,
    )
    where = f" at {frame.filename}:{frame.lineno} ({frame.line})" if frame else ""
    text = first_line(error).rstrip(".")
    first = (
        "Say what its inputs look like, which decides branches on shapes: pass inputs= or "
        "example_inputs= (in a command --input SHAPE). If it fails with them, too, move"
    )
    return (
        f"{type(model).__name__}.forward can't be traced{where}: {text}. "
        f"{first if blind else 'Move'} the part that depends on the data into a child module "
        "without convolutions (it then becomes a leaf by itself), or convert the child that holds "
        "the convolutions."
    )


_IN_PLACE = frozenset(
    {"setitem", "delitem", *(f"i{n}" for n in dir(operator) if hasattr(operator, f"i{n}"))}
)


def _drop_questions(graph: fx.Graph) -> None:
    """Remove the nodes that were recorded only to decide a branch; no other node reads them."""
    for node in reversed(list(graph.nodes)):
        if node.op != "call_function" or node.users:
            continue
        name = getattr(node.target, "__name__", "")
        plain = getattr(node.target, "__module__", "") == "_operator" and name not in _IN_PLACE
        if plain or node.target is getattr:
            graph.erase_node(node)


def trace_graph(
    model: nn.Module,
    *,
    examples: tuple[Any, ...] | None,
    leaf_types: tuple[type[nn.Module], ...] = (),
    leaf_names: frozenset[str] = frozenset(),
) -> TracedGraph:
    """Record ``model``, in eval mode; it is left as it was.

    Args:
        model: any module.
        examples: positional arguments of one forward call. Without them branches on shapes can't
            be decided.
        leaf_types: classes that torch.fx must not look into.
        leaf_names: names of modules that it must not look into.

    Raises:
        TraceError: the model's own ``forward`` can't be traced; the message names the line.
    """
    twin = isolated_copy(model, share_parameters=True).eval()
    for module in twin.modules():
        # For an old backward hook torch searches the output for a tensor: without end in a proxy.
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
    own = set(vars(twin))
    tracer = Tracer(examples, leaf_types, leaf_names)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            graph = tracer.run(twin)
    except Exception as error:
        raise TraceError(_sentence(model, error, blind=examples is None)) from error
    _drop_questions(graph)
    constants: dict[str, Tensor] = {
        name: value
        for node in graph.nodes
        if node.op == "get_attr"
        and (name := str(node.target)) not in own
        and isinstance(value := vars(twin).get(name), Tensor)
    }
    return TracedGraph(graph=graph, opaque=tracer.opaque, constants=constants)
