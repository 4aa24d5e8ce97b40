"""Split a flat graph where its maps become large.

The layers in front have few pixels and most of the weights: they run on a whole batch, so that each
weight is read once and matrix products have many rows. The layers behind run on as few images at a
time as keep their maps small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, fx, nn

from dsconvert.forms.nodes import sized
from dsconvert.model.observe import evaluating

LARGE = 2 << 20
"""Bytes of one image's map from which on the second stage begins."""
TOGETHER = 32 << 20
"""Bytes that the largest map of the first stage may take, for all images together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stages:
    """Two graphs in sequence.

    Attributes:
        first: takes the inputs of the whole graph, returns a tuple.
        second: takes that tuple's values, returns the images.
        batched: whether each of these values has the batch as its first dimension.
        many: images of a batch that the first may take together.
    """

    first: fx.GraphModule
    second: fx.GraphModule
    batched: tuple[bool, ...]
    many: int


def stages_of(
    module: fx.GraphModule, one: tuple[Tensor, ...], two: tuple[Tensor, ...]
) -> Stages | None:
    """Split ``module``, or return None where no map is large or a value can't be split by images.

    Args:
        module: a flat graph whose nodes have shapes; it does not change.
        one: the inputs of one image.
        two: those of two images.
    """
    nodes = list(module.graph.nodes)
    cut = next((i for i, node in enumerate(nodes) if _bytes(node) > LARGE), None)
    if cut is None or not any(n.op == "call_module" for n in nodes[:cut]):
        return None
    front = set(nodes[:cut])
    crossing = [n for n in nodes[:cut] if any(user not in front for user in n.users)]
    if any(n.op == "placeholder" for n in nodes[cut:]):
        return None
    first, second = fx.Graph(), fx.Graph()
    here: dict[fx.Node, fx.Node] = {}
    for node in nodes[:cut]:
        here[node] = first.node_copy(node, lambda n: here[n])
    first.output(tuple(here[n] for n in crossing))
    there = {n: second.placeholder(n.name) for n in crossing}
    for node in nodes[cut:]:
        there[node] = second.node_copy(node, lambda n: there[n])
    made = fx.GraphModule(module, first), fx.GraphModule(module, second)
    batched = _batched(made[0], one, two)
    if batched is None:
        return None
    largest = max((_bytes(n) for n in nodes[:cut]), default=0)
    return Stages(
        first=made[0], second=made[1], batched=batched, many=max(1, TOGETHER // max(1, largest))
    )


def _batched(
    module: nn.Module, one: tuple[Tensor, ...], two: tuple[Tensor, ...]
) -> tuple[bool, ...] | None:
    """Return which outputs follow the batch; None if one does so in another dimension."""
    with evaluating(module):
        values = module(*one), module(*two)
    found: list[bool] = []
    for a, b in zip(*values, strict=True):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.dim() != b.dim():
            return None
        follows = a.dim() > 0 and (len(a), len(b)) == (1, 2)
        if a.shape[1:] != b.shape[1:] or not (follows or a.shape == b.shape):
            return None
        found.append(follows)
    return tuple(found)


def _bytes(node: fx.Node) -> int:
    """Return the bytes of a node's (N, C, H, W) value in the example run, for one image."""
    shape = sized(node)
    if shape is None or len(shape) != 4:
        return 0
    return math.prod(shape[1:]) * node.meta["tensor_meta"].dtype.itemsize
