"""Replace sequences of a flat graph by modules that keep their maps in the cache."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dsconvert.forms.bands import BandedConvolution
from dsconvert.forms.flat_graph import Core
from dsconvert.forms.gates import halves_channels
from dsconvert.forms.layers import AddNoise, FewChannels, GatedPointwise, GatedUpsample
from dsconvert.forms.nodes import drop_dead, layer_of, module_of, only_user, replace_node, sized
from dsconvert.forms.spatial_filters import SpatialFilter, filter_of, mixed
from dsconvert.kernels import is_pointwise
from dsconvert.model.plain_layers import computes_as

_FEW = 64
"""Pixels below which a map is left to the plain operators, but for matrix products: those of few
rows gain most from a packed matrix."""
_OWN = (BandedConvolution, GatedPointwise, GatedUpsample)


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The noise and the gate behind a convolution."""

    last: fx.Node
    plane: Any
    weight: Tensor | None
    gate: bool


def fuse(core: Core) -> None:
    """Put the parts of :mod:`dsconvert.forms.bands` and ``layers`` into ``core``, in place."""
    module, graph = core.module, core.module.graph
    _instance_norms(module)
    for count, node in enumerate(list(graph.nodes)):
        if node not in graph.nodes or not is_large(module, node):
            continue
        conv = layer_of(module, node)
        if FewChannels.fits(conv):
            # Under a new name: the graph may read the kernel itself, too, for a demodulation.
            name = f"few_{count}"
            module.add_submodule(name, FewChannels(conv))
            node.target = name
        elif GatedUpsample.fits(conv):
            tail = tail_of(module, node)
            made: nn.Module = GatedUpsample(conv, tail.weight, gate=tail.gate)
            put(module, f"fused_{count}", made, node.args[0], tail)
        elif (spatial := filter_of(conv)) is not None:
            _band(module, node, spatial, f"fused_{count}")
    for count, node in enumerate(list(graph.nodes)):
        conv = layer_of(module, node)
        if is_pointwise(conv) and len(sized(node) or ()) == 4:
            tail = tail_of(module, node)
            made = GatedPointwise(conv, tail.weight, gate=tail.gate)
            put(module, f"mixed_{count}", made, node.args[0], tail)
    _multiply_in_place(core)
    drop_dead(graph)
    module.delete_all_unused_submodules()
    module.recompile()


def _instance_norms(module: fx.GraphModule) -> None:
    """Replace instance normalisations by group normalisations of one channel a group: the same.

    torch's instance normalisation has no kernel for ``channels_last``: it copies the map there and
    returns it in the other layout (64 channels, 256 x 256, one core: 74 ms; contiguous 11 ms; the
    group normalisation in ``channels_last`` 5 ms), so that every layer behind it copies again.
    """
    for name, norm in list(module.named_modules()):
        # In eval mode, stored statistics take the place of the instance's own.
        if type(norm) is not nn.InstanceNorm2d or norm.track_running_stats:
            continue
        if not computes_as(norm, nn.InstanceNorm2d):
            continue
        count = norm.num_features
        made = nn.GroupNorm(count, count, eps=norm.eps, affine=norm.affine)
        if norm.affine:
            made.load_state_dict(norm.state_dict())
        first = next(norm.parameters(), None)
        module.set_submodule(name, made if first is None else made.to(first.device, first.dtype))


def is_large(module: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a module's output has enough pixels for the parts made for CPUs."""
    shape = sized(node)
    if module_of(module, node) is None or shape is None or len(shape) != 4:
        return False
    return shape[2] * shape[3] >= _FEW


def _band(module: fx.GraphModule, node: fx.Node, spatial: SpatialFilter, name: str) -> None:
    """Replace ``node``, and what belongs to it in front and behind, by one module."""
    source: Any = node.args[0]
    before, after = layer_of(module, source), only_user(node)
    behind = layer_of(module, after)
    front = back = None
    if spatial.takes_front and is_pointwise(before) and len(source.users) == 1:
        if before.bias is None:
            front, source = before, source.args[0]
    elif not spatial.upsamples and is_doubling(module, source) and len(source.users) == 1:
        doubled = spatial.upsampled()
        if doubled is not None:
            spatial, source = doubled, source.args[0]
    last = node
    if spatial.takes_back and after is not None and is_pointwise(behind):
        back, last = behind, after
    elif spatial.needs_back:
        return
    tail = tail_of(module, last)
    if front is None and back is None and not spatial.worth_alone:
        return
    if spatial.is_depthwise and not spatial.upsamples:
        return  # at rank 1 the parts of ``layers`` are faster: 71 to 97 ms for ``fast``, ngf 64
    made = mixed(spatial, front=front, back=back, noise=tail.weight, gate=tail.gate)
    put(module, name, made, source, tail)


def is_doubling(module: fx.GraphModule, node: Any) -> bool:
    """Return whether ``node`` is a nearest upsample by 2 of a (N, C, H, W) map."""
    layer = layer_of(module, node, nn.Upsample)
    after = sized(node)
    before = sized(node.args[0]) if isinstance(node, fx.Node) and node.args else None
    if before is None or after is None or len(after) != 4:
        return False
    if after[2:] != (2 * before[2], 2 * before[3]) or not isinstance(node, fx.Node):
        return False
    if layer is not None:
        return layer.mode == "nearest"
    return node.target is F.interpolate and str(node.kwargs.get("mode", "nearest")) == "nearest"


def tail_of(module: fx.GraphModule, node: fx.Node) -> Tail:
    """Return the noise and the gate behind ``node`` that no other node reads in between."""
    last, plane, weight = node, None, None
    after = only_user(last)
    injection = module_of(module, after)
    if after is not None and isinstance(injection, AddNoise) and after.args[0] is last:
        last, plane, weight = after, after.args[1], injection.weight.detach()
        after = only_user(last)
    gate = after is not None and halves_channels(after)
    if gate and after is not None:
        last = after
    if weight is not None and weight.numel() == 1:
        weight = weight.reshape(1)
    return Tail(last=last, plane=plane, weight=weight, gate=gate)


def put(module: fx.GraphModule, name: str, made: nn.Module, source: Any, tail: Tail) -> None:
    """Replace the nodes from ``source`` to the last of ``tail`` by ``made``."""
    module.add_submodule(name, made)
    with module.graph.inserting_after(tail.last):
        args = (source,) if tail.plane is None else (source, tail.plane)
        new = module.graph.call_module(name, args)
    new.meta = dict(tail.last.meta)
    replace_node(module.graph, tail.last, new)
    drop_dead(module.graph)


def _multiply_in_place(core: Core) -> None:
    """Multiply in place where the map is a fused module's output that no other node reads."""
    for node in list(core.module.graph.nodes):
        if node.target not in (operator.mul, torch.mul) or len(node.args) != 2:
            continue
        for x, by in (node.args, node.args[::-1]):
            fresh = isinstance(module_of(core.module, x), _OWN)
            if fresh and len(x.users) == 1 and sized(x) == sized(node):
                node.op, node.target, node.args = "call_method", "mul_", (x, by)
                break
