"""Replace sequences of a flat graph by the operators of :mod:`dsconvert.kernels`, for a GPU.

A depthwise filter becomes one operator with the noise and the gate behind it, also behind a nearest
x2 upsample, whose map is then never written. Other convolutions stay torch's own, without their
bias: torch adds it on a GPU in a pass of its own, and the operator that adds the noise and gates
the map adds it, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from dsconvert.forms.flat_graph import Core
from dsconvert.forms.fusion import is_doubling, put, tail_of
from dsconvert.forms.gpu_convolutions import use_operators
from dsconvert.forms.nodes import changeable, drop_dead, layer_of, sized
from dsconvert.kernels import filters_of, noise_gate
from dsconvert.model.upsampling import upsampled


class NoiseGate(nn.Module):
    """[Depthwise filter,] bias, noise and gate: (N, I, H, W) -> (N, C or C / 2, H', W').

    Args:
        weight: filters (C, R, k, k), see :func:`dsconvert.kernels.depthwise`; None: no filter.
        bias: (C,).
        noise: weight of the noise, one number or C.
        gate: whether there is a gate.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    noise: nn.Parameter | None

    def __init__(
        self, weight: Tensor | None, bias: Tensor | None, noise: Tensor | None, *, gate: bool
    ) -> None:
        super().__init__()
        self.gate = gate
        self.weight, self.bias, self.noise = fixed(weight), fixed(bias), fixed(noise)

    def extra_repr(self) -> str:
        """Return the filters' shape."""
        shape = None if self.weight is None else tuple(self.weight.shape)
        return f"filters={shape}, noise={self.noise is not None}, gate={self.gate}"

    def forward(self, x: Tensor, plane: Tensor | None = None) -> Tensor:
        """Return the map; ``plane`` (N or 1, 1, H', W') is the noise."""
        filtered = self.weight is not None
        return noise_gate(
            x, weight=self.weight, bias=self.bias if filtered else None, noise=self.noise,
            plane=plane, shift=None if filtered else self.bias, gate=self.gate,
        )  # fmt: skip


def fixed(tensor: Tensor | None) -> nn.Parameter | None:
    """Return a copy as a parameter without gradient, contiguous."""
    if tensor is None:
        return None
    made = tensor.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(made, requires_grad=False)


def fuse_for_gpu(core: Core) -> None:
    """Put :class:`NoiseGate` modules into ``core``, in place."""
    module, graph = core.module, core.module.graph
    free = changeable(module)
    for count, node in enumerate(list(graph.nodes)):
        if node not in graph.nodes:
            continue
        conv = layer_of(module, node)
        if conv is not None and len(sized(node) or ()) == 4:
            _fuse(module, node, conv, f"gpu_{count}", alone=conv in free)
    drop_dead(graph)
    module.delete_all_unused_submodules()
    use_operators(module)
    module.recompile()


def _fuse(module: fx.GraphModule, node: fx.Node, conv: Any, name: str, *, alone: bool) -> None:
    """Replace a convolution, and what belongs to it in front and behind."""
    weight, source, tail = filters_of(conv), node.args[0], tail_of(module, node)
    if weight is not None:
        front = source
        if weight.shape[-1] == 3 and is_doubling(module, front) and len(front.users) == 1:  # type: ignore[union-attr]
            weight = upsampled(weight.detach().double()).to(weight.dtype)
            source = front.args[0]  # type: ignore[union-attr]
        put(module, name, NoiseGate(weight, conv.bias, tail.weight, gate=tail.gate), source, tail)
        return
    if tail.last is node or not alone:
        return
    made = NoiseGate(None, conv.bias, tail.weight, gate=tail.gate)
    conv.bias = None
    put(module, name, made, node, tail)
