"""The training form of a generator: the same function and state dict, far less memory kept."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dsconvert.adapter import Adapter, adapter_for
from dsconvert.forms.gates import is_gate
from dsconvert.forms.inputs import Inputs, examples_of
from dsconvert.forms.layers import is_depthwise_upsample, upsample_depthwise
from dsconvert.forms.recompute import NormGate, Spatial
from dsconvert.model.copying import owned_copy
from dsconvert.model.editing import replace
from dsconvert.model.graph import ConvTypes, trace_graph
from dsconvert.model.model_types import ModelTypes, types_of
from dsconvert.model.observe import undisturbed
from dsconvert.model.wrappers import unwrapped
from dsconvert.util.memory_format import in_channels_last

Kind = TypeVar("Kind", bound=nn.Module)


def _adopt(kind: type[Kind], module: nn.Module) -> Kind:
    """An instance of ``kind`` with the tables of ``module``: parameters, buffers, hooks, all."""
    made = kind.__new__(kind)
    made.__dict__.update(module.__dict__)
    return made


class Passed(nn.Module):
    """Keeps the parameters of a module whose work is done by the normalisation behind it."""

    def forward(self, x: Tensor) -> Tensor:
        """``x``, unchanged."""
        return x


class PassedConv(nn.Conv2d):
    """A convolution whose work is done behind it; norm hooks still make its weight."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """``input``, unchanged."""
        return input


class PassedConvTranspose(nn.ConvTranspose2d):
    """The same, transposed."""

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:  # noqa: A002, ARG002
        """``input``, unchanged."""
        return input


def _spatial(conv: nn.Module) -> Spatial | None:
    """What ``conv`` computes, if it is depthwise (cheap to compute again)."""
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


def _size(conv: nn.Conv2d | nn.ConvTranspose2d, size: tuple[int, ...]) -> tuple[int, ...]:
    """Height and width behind ``conv``."""
    found: list[int] = []
    for i, n in enumerate(size):
        reach = conv.dilation[i] * (conv.kernel_size[i] - 1)
        pad, stride = int(conv.padding[i]), conv.stride[i]
        if isinstance(conv, nn.ConvTranspose2d):
            found.append((n - 1) * stride - 2 * pad + reach + conv.output_padding[i] + 1)
        else:
            found.append((n + 2 * pad - reach - 1) // stride + 1)
    return tuple(found)


class _Before:
    """The convolution and the noise in front of a normalisation, whose work it takes over.

    Held outside of the module's own tables: these modules have their places, and their names in the
    state dict, elsewhere.
    """

    def __init__(self, conv: Any, noise: nn.Module | None, *, owned: bool) -> None:
        self.conv, self.noise = conv, noise
        self.owned = owned
        """Whether the normalisation alone reads its input, fresh from a convolution."""

    def run(
        self, norm: Any, x: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, var: Tensor
    ) -> Tensor:
        """Convolution, noise, normalisation and gate."""
        conv, weight, plane = self.conv, None, None
        if self.noise is not None:
            weight = self.noise.get_parameter("weight")
            size = tuple(x.shape[2:]) if conv is None else _size(conv, tuple(x.shape[2:]))
            # As the original draws it: on the CPU, whatever the device.
            plane = torch.randn(x.shape[0], 1, *size).to(x.device)
        step: Any = NormGate.apply
        return step(
            x,
            None if conv is None else conv.weight,
            None if conv is None else conv.bias,
            weight,
            plane,
            gain,
            bias,
            mean,
            var,
            None if conv is None else _spatial(conv),
            self.owned,
            norm.training,
            norm.momentum,
            norm.eps,
        )


class LeanBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that also does what stands in front of it, and the gate behind it."""

    _before: _Before

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """(N, I, h, w) to (N, C / 2, H, W)."""
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        assert self.running_mean is not None
        assert self.running_var is not None
        return self._before.run(
            self, input, self.weight, self.bias, self.running_mean, self.running_var
        )


class LeanConditionalNorm(nn.Module):
    """The same for a codebase's own, conditional batch normalisation."""

    _before: _Before
    _norm: tuple[nn.Module]
    _adapter: Adapter

    def forward(self, x: Tensor, *condition: Any) -> Tensor:
        """(N, I, h, w) and the condition to (N, C / 2, H, W)."""
        gain, bias = self._adapter.affine(self._norm[0], *condition)
        mean, var = self.get_buffer("stored_mean"), self.get_buffer("stored_var")
        return self._before.run(self, x, gain, bias, mean, var)


@dataclass(frozen=True, kw_only=True)
class _Chain:
    """Names of the modules of one step; convolution and noise may be missing."""

    owned: bool
    conv: str | None
    noise: str | None
    norm: str
    gate: str

    def passed(self) -> tuple[str, ...]:
        """Modules whose work the normalisation takes over."""
        return tuple(n for n in (self.conv, self.noise, self.gate) if n is not None)


def _chains(
    model: nn.Module, graph: fx.Graph, adapter: Adapter | None, types: ModelTypes
) -> list[_Chain]:
    modules = dict(model.named_modules(remove_duplicate=False))
    noises = types.noises
    own = types.norms if adapter is not None and adapter.can_affine else ()
    calls = Counter(str(n.target) for n in graph.nodes if n.op == "call_module")

    def module(node: Any) -> nn.Module | None:
        called = isinstance(node, fx.Node) and node.op == "call_module"
        return modules.get(str(node.target)) if called else None

    def alone(node: Any) -> bool:
        return isinstance(node, fx.Node) and len(node.users) == 1

    found: list[_Chain] = []
    for node in graph.nodes:
        norm: Any = module(node)
        plain = type(norm) is nn.BatchNorm2d and norm.track_running_stats and norm.affine
        if not (plain or isinstance(norm, own)) or not isinstance(
            getattr(norm, "momentum", None), float
        ):
            continue
        if calls[str(node.target)] != 1 or not alone(node) or not node.args:
            continue
        gate: fx.Node = next(iter(node.users))
        gate_module = module(gate)
        if gate_module is None or not is_gate(gate_module):
            continue
        before: Any = node.args[0]
        noise = before if isinstance(module(before), noises) and alone(before) else None
        site: Any = noise.args[0] if noise is not None else before
        conv: Any = module(site)
        owned = isinstance(conv, ConvTypes) and alone(site)
        # A parametrised convolution is of a class of its own.
        cheap = (
            owned
            and type(conv) in ConvTypes
            and _spatial(conv) is not None
            and calls[str(site.target)] == 1
        )
        found.append(
            _Chain(
                owned=owned,
                conv=str(site.target) if cheap else None,
                noise=None if noise is None else str(noise.target),
                norm=str(node.target),
                gate=str(gate.target),
            )
        )
    # A noise or a gate that also serves elsewhere must go on doing its work.
    while True:
        served = Counter(name for chain in found for name in chain.passed())
        kept = [c for c in found if all(served[n] == calls[n] for n in c.passed())]
        if len(kept) == len(found):
            return kept
        found = kept


def lean(
    model: nn.Module, *, inputs: Inputs | None = None, channels_last: bool = True
) -> nn.Module:
    """The training form of ``model``: the same function, far less memory kept for backward.

    Each noise injection + batch normalisation + gate, with the depthwise convolution in front if
    there is one, becomes one step that keeps its input only and makes the rest anew in the backward
    pass (:class:`~dsconvert.forms.recompute.NormGate`). Gradients are exact; random draws and
    running statistics are those of the ordinary form; once differentiable.

    The state dict has the same names and shapes: checkpoints move freely between the two forms, and
    ``ordinary.load_state_dict(lean.state_dict())`` gives back what can be saved as a file.

    Args:
        model: a generator, converted or not; left as it was.
        inputs: as for :func:`deploy`, where no adapter knows the model.
        channels_last: lay convolution weights out so, which is faster on CPUs.

    Raises:
        DsconvertError: the model can't be traced, or nothing says what its inputs look like.
    """
    model = unwrapped(model)
    with undisturbed():
        made = _lean(model, inputs)
    return in_channels_last(made) if channels_last else made


def _lean(model: nn.Module, inputs: Inputs | None) -> nn.Module:
    adapter = adapter_for(model)
    types = types_of(model, adapter)
    made = owned_copy(model)
    gates = tuple({type(m) for m in made.modules() if is_gate(m)})
    graph = trace_graph(
        made,
        examples=examples_of(model, inputs),
        leaf_types=(*gates, *types.noises, *types.norms),
    ).graph
    for chain in _chains(made, graph, adapter, types):
        conv: Any = made.get_submodule(chain.conv) if chain.conv else None
        noise = made.get_submodule(chain.noise) if chain.noise else None
        norm = made.get_submodule(chain.norm)
        if conv is not None:
            kind = PassedConvTranspose if isinstance(conv, nn.ConvTranspose2d) else PassedConv
            passed: nn.Module = _adopt(kind, conv)
            replace(made, conv, passed)
            conv = passed
        if noise is not None and not isinstance(noise, Passed):
            held = _adopt(Passed, noise)
            replace(made, noise, held)
            noise = held
        if isinstance(norm, nn.BatchNorm2d):
            new: Any = _adopt(LeanBatchNorm2d, norm)
        else:
            new = _adopt(LeanConditionalNorm, norm)
            new._norm, new._adapter = (norm,), adapter
        new._before = _Before(conv, noise, owned=chain.owned)
        replace(made, norm, new)
        gate = made.get_submodule(chain.gate)
        replace(made, gate, nn.Identity().train(gate.training))
    return made
