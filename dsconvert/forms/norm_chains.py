"""Find the sequences [convolution +] [noise +] normalisation + gate in a traced generator."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from dsconvert.adapter import Adapter
from dsconvert.forms.gates import is_gate
from dsconvert.forms.layers import is_depthwise_upsample, upsample_depthwise
from dsconvert.forms.recompute import Spatial
from dsconvert.model.graph import ConvTypes
from dsconvert.model.model_types import ModelTypes
from dsconvert.model.norms import other_hooks
from dsconvert.model.plain_layers import computes_as


def spatial_of(conv: nn.Module) -> Spatial | None:
    """Return the operation of ``conv`` if it is depthwise (cheap to compute again)."""
    if not isinstance(conv, nn.Conv2d | nn.ConvTranspose2d):
        return None
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    if conv.groups == 1 or conv.groups != min(conv.in_channels, conv.out_channels):
        return None
    if isinstance(conv, nn.ConvTranspose2d):
        if is_depthwise_upsample(conv):
            return upsample_depthwise
        return functools.partial(
            F.conv_transpose2d, stride=conv.stride, padding=conv.padding,
            output_padding=conv.output_padding, groups=conv.groups, dilation=conv.dilation,
        )  # fmt: skip
    return functools.partial(
        F.conv2d, stride=conv.stride, padding=conv.padding, dilation=conv.dilation,
        groups=conv.groups,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The modules of one step, by name; convolution and noise may be missing."""

    owned: bool
    conv: str | None
    noise: str | None
    norm: str
    gate: str

    def passed(self) -> tuple[str, ...]:
        """Return the modules whose operations the normalisation performs."""
        return tuple(n for n in (self.conv, self.noise, self.gate) if n is not None)


def _takes_part(module: nn.Module | None, *kinds: type[nn.Module]) -> bool:
    """Return whether a step may perform ``module``: it computes as ``kinds`` do, without hooks."""
    return module is not None and computes_as(module, *kinds) and not _hooked(module)


def _hooked(module: nn.Module) -> bool:
    """Return whether hooks see, and may change, maps or gradients of ``module``."""
    backward = module._backward_hooks or module._backward_pre_hooks
    return other_hooks(module) or bool(backward)


def find_chains(
    model: nn.Module, graph: fx.Graph, adapter: Adapter | None, types: ModelTypes
) -> list[Chain]:
    """Return every [convolution +] [noise +] normalisation + gate that can become one step."""
    modules = dict(model.named_modules(remove_duplicate=False))
    noises = types.noises
    own = types.norms if adapter is not None and adapter.can_affine else ()

    def module(node: Any) -> nn.Module | None:
        called = isinstance(node, fx.Node) and node.op == "call_module"
        return modules.get(str(node.target)) if called else None

    # A module that is called as a whole calls those inside it, which may have nodes elsewhere.
    called = (module(node) for node in graph.nodes)
    uses = Counter(m for each in called if each is not None for m in each.modules())
    calls = {name: uses[m] for name, m in modules.items()}

    def alone(node: Any) -> bool:
        return isinstance(node, fx.Node) and len(node.users) == 1

    def of_map_alone(node: fx.Node) -> bool:
        # The model's own forward calls what replaces the module, with the names of its arguments.
        return len(node.args) == 1 and not node.kwargs

    found: list[Chain] = []
    for node in graph.nodes:
        norm: Any = module(node)
        plain = type(norm) is nn.BatchNorm2d and norm.track_running_stats and norm.affine
        kinds = (nn.BatchNorm2d,) if plain else own
        if not _takes_part(norm, *kinds) or not isinstance(getattr(norm, "momentum", None), float):
            continue
        if calls[str(node.target)] != 1 or not alone(node) or not node.args or node.kwargs:
            continue
        gate: fx.Node = next(iter(node.users))
        gate_module = module(gate)
        if gate_module is None or not is_gate(gate_module) or _hooked(gate_module):
            continue
        if not of_map_alone(gate):
            continue
        before: Any = node.args[0]
        added = _takes_part(module(before), *noises) and alone(before) and of_map_alone(before)
        noise = before if added else None
        site: Any = noise.args[0] if noise is not None else before
        conv: Any = module(site)
        owned = _takes_part(conv, *ConvTypes) and alone(site)
        # A parametrised convolution has its own class.
        cheap = (
            owned
            and type(conv) in ConvTypes
            and spatial_of(conv) is not None
            and calls[str(site.target)] == 1
            and len(site.args) + len(site.kwargs) == 1  # no output_size
        )
        found.append(
            Chain(
                owned=owned,
                conv=str(site.target) if cheap else None,
                noise=None if noise is None else str(noise.target),
                norm=str(node.target),
                gate=str(gate.target),
            )
        )
    # A noise or a gate with further calls must keep its operation.
    while True:
        served = Counter(name for chain in found for name in chain.passed())
        kept = [c for c in found if all(served[n] == calls[n] for n in c.passed())]
        if len(kept) == len(found):
            return kept
        found = kept
