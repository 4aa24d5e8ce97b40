"""Recognise gated linear units by their function, in any notation."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dsconvert.forms.nodes import drop_dead, module_of, replace_node
from dsconvert.model.norms import other_hooks
from dsconvert.model.plain_layers import computes_as


def unify_gates(module: fx.GraphModule) -> None:
    """Replace gated linear units in any notation by ``F.glu``: one operator, one kernel."""
    graph = module.graph
    for node in list(graph.nodes):
        kind = module_of(module, node)
        source: Any = None
        if kind is not None and len(node.args) == 1 and is_gate(kind):
            source = node.args[0]
        elif node.target in (operator.mul, torch.mul) or (
            node.op == "call_method" and node.target == "mul"
        ):
            source = _gated(node)
        if not isinstance(source, fx.Node):
            continue
        with graph.inserting_before(node):
            new = graph.call_function(F.glu, (source, 1))
        new.meta = dict(node.meta)
        replace_node(graph, node, new)
    drop_dead(graph)


def halves_channels(node: fx.Node) -> bool:
    """Return whether ``node`` is ``F.glu`` over the channels of a (N, C, H, W) map."""
    options = (*node.args[1:], *node.kwargs.values())
    return node.target is F.glu and options in ((1,), (-3,))


def _gated(node: fx.Node) -> fx.Node | None:
    """Return ``x`` if ``node`` is ``x.chunk(2, 1)[0] * sigmoid(x.chunk(2, 1)[1])``, else None."""
    if len(node.args) != 2:
        return None
    for value, gate in (node.args, node.args[::-1]):
        if not isinstance(value, fx.Node) or not isinstance(gate, fx.Node):
            continue
        if gate.target not in (torch.sigmoid, F.sigmoid, "sigmoid") or len(gate.args) != 1:
            continue
        second = gate.args[0]
        if not isinstance(second, fx.Node) or second.target is not operator.getitem:
            continue
        if value.target is not operator.getitem:
            continue
        (halves, one), (other, two) = value.args, second.args
        if halves is other and (one, two) == (0, 1) and _is_halving(halves):
            return halves.args[0]  # type: ignore[union-attr]
    return None


def _is_halving(node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.target not in (torch.chunk, "chunk"):
        return False
    options = [*node.args[1:], *node.kwargs.values()]
    return options == [2, 1]


def is_gate(module: nn.Module) -> bool:
    """Return whether ``module`` computes a gated linear unit over channels.

    A module that can't be traced (the official GLU asserts on a shape) is tested: it has no state,
    and equals ``F.glu`` on random numbers. A module with hooks is none: they may change its result.
    """
    if other_hooks(module):
        return False
    if computes_as(module, nn.GLU):
        return module.dim == 1  # type: ignore[attr-defined]
    state = (*module.parameters(), *module.buffers(), *module.children())
    if state or type(module).__module__.startswith("torch."):
        return False
    probe = torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(0), device="cpu")
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found: Any = module(probe.clone())
            return (
                isinstance(found, Tensor)
                and torch.equal(found, module(probe.clone()))
                and (
                    found.shape == (2, 3, 3, 5)
                    and torch.allclose(found, F.glu(probe, 1), rtol=1e-5, atol=1e-6)
                )
            )
    except Exception:  # it takes another input: no gate
        return False
