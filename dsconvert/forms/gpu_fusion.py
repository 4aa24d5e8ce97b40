"""Replace sequences of a flat graph by the operators of :mod:`dsconvert.kernels`, for a GPU.

A depthwise filter becomes one operator with the noise and the gate behind it, also behind a nearest
x2 upsample, whose map is then never written. Other convolutions stay torch's own, without their
bias: torch adds it on a GPU in a pass of its own, and the operator that adds the noise and gates
the map adds it, too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dsconvert.forms.flat_graph import Core
from dsconvert.forms.fusion import is_doubling, put, tail_of
from dsconvert.forms.gpu_convolutions import use_operators
from dsconvert.forms.nodes import drop_dead, module_of, sized
from dsconvert.kernels import filters_of, noise_gate


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


def doubled(weight: Tensor) -> Tensor:
    """Return 3 x 3 filters behind a nearest x2 upsample as 4 x 4 transposed ones with stride 2.

    The transposed kernel is the full correlation of the filter, flipped, with a 2 x 2 box: pixel x
    adds to outputs 2x - 1 to 2x + 2.
    """
    channels, rank = weight.shape[:2]
    flipped = weight.detach().double().flip(2, 3).reshape(-1, 1, 3, 3)
    box = flipped.new_ones(1, 1, 2, 2)
    made = F.conv2d(F.pad(flipped, (1, 1, 1, 1)), box)
    return made.reshape(channels, rank, 4, 4).to(weight.dtype)


def fuse_for_gpu(core: Core) -> None:
    """Put :class:`NoiseGate` modules into ``core``, in place."""
    module, graph = core.module, core.module.graph
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for count, node in enumerate(list(graph.nodes)):
        conv: Any = module_of(module, node)
        if node not in graph.nodes or not isinstance(conv, nn.Conv2d | nn.ConvTranspose2d):
            continue
        if len(sized(node) or ()) != 4:
            continue
        _fuse(module, node, conv, f"gpu_{count}", alone=calls[str(node.target)] == 1)
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
            weight, source = doubled(weight), front.args[0]  # type: ignore[union-attr]
        put(module, name, NoiseGate(weight, conv.bias, tail.weight, gate=tail.gate), source, tail)
        return
    if tail.last is node or not alone:
        return
    made = NoiseGate(None, conv.bias, tail.weight, gate=tail.gate)
    conv.bias = None
    put(module, name, made, node, tail)
