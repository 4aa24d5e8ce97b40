"""The training form of a generator: the same function and state dict, with far less memory."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dsconvert.adapter import Adapter, adapter_for, as_adapter
from dsconvert.config.choices import NoiseSource
from dsconvert.forms.gates import is_gate
from dsconvert.forms.gpu_convolutions import use_operators
from dsconvert.forms.lean_operators import by_operators
from dsconvert.forms.norm_chains import find_chains, spatial_of
from dsconvert.forms.recompute import NormGate
from dsconvert.kernels import filters_of, takes
from dsconvert.model.copying import owned_copy
from dsconvert.model.editing import replace
from dsconvert.model.graph import trace_graph
from dsconvert.model.inputs import Inputs, examples_of
from dsconvert.model.model_types import types_of
from dsconvert.model.noise_source import device_of_draws
from dsconvert.model.observe import undisturbed
from dsconvert.model.wrappers import unwrapped
from dsconvert.util.memory_format import in_channels_last

Kind = TypeVar("Kind", bound=nn.Module)


def _adopt(kind: type[Kind], module: nn.Module) -> Kind:
    """Return an instance of ``kind`` with all attributes of ``module`` (parameters, hooks, ...)."""
    made = kind.__new__(kind)
    made.__dict__.update(module.__dict__)
    return made


class Passed(nn.Module):
    """Holds the parameters of a module whose operation the normalisation behind it performs."""

    noise_source: NoiseSource = "device"
    """Where the noise of a noise injection is drawn."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x


class PassedConv(nn.Conv2d):
    """A convolution whose operation is performed behind it; norm hooks still compute its weight."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Return ``input``."""
        return input


class PassedConvTranspose(nn.ConvTranspose2d):
    """The same, transposed."""

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:  # noqa: A002, ARG002
        """Return ``input``."""
        return input


def _size(conv: nn.Conv2d | nn.ConvTranspose2d, size: tuple[int, ...]) -> tuple[int, ...]:
    """Return height and width of the output of ``conv``."""
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
    """The convolution and the noise in front of a normalisation that also performs them.

    It is no module: these modules have their names in the state dict elsewhere.
    """

    def __init__(self, conv: Any, noise: Passed | None, *, owned: bool) -> None:
        self.conv, self.noise = conv, noise
        self.owned = owned
        """Whether only the normalisation reads its input, a convolution's output."""

    def run(
        self, norm: Any, x: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, var: Tensor
    ) -> Tensor:
        """Run convolution, noise, normalisation and gate."""
        conv, weight, plane = self.conv, None, None
        if self.noise is not None:
            weight = self.noise.get_parameter("weight")
            size = tuple(x.shape[2:]) if conv is None else _size(conv, tuple(x.shape[2:]))
            where = device_of_draws(self.noise.noise_source, x.device)
            plane = torch.randn(x.shape[0], 1, *size, device=where, dtype=torch.float32)
            plane = plane.to(x.device, weight.dtype)
        filters = None if conv is None else filters_of(conv)
        if takes(x.device) and (conv is None or filters is not None):
            own = None if conv is None else conv.bias
            return by_operators(norm, x, filters, own, weight, plane, gain, bias, mean, var)
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
            None if conv is None else spatial_of(conv),
            self.owned,
            norm.training,
            norm.momentum,
            norm.eps,
        )


class LeanBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation together with the operations in front of it and the gate behind it."""

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


def lean(
    model: nn.Module,
    *,
    inputs: Inputs | None = None,
    channels_last: bool = True,
    adapter: Adapter | None = None,
) -> nn.Module:
    """Return the training form of ``model``: the same function, with far less memory for backward.

    Each noise injection + batch normalisation + gate, with the depthwise convolution in front if
    there is one, becomes one step that stores its input only and recomputes the rest in the
    backward pass (:class:`~dsconvert.forms.recompute.NormGate`). Gradients are exact; draws and
    running statistics are those of the ordinary form; once differentiable.

    The state dict has the same names and shapes: checkpoints fit both forms, and
    ``ordinary.load_state_dict(lean.state_dict())`` restores a model that can be saved as a file.

    Args:
        model: a generator, converted or not; it does not change.
        inputs: as for :func:`deploy`, where no adapter knows the model.
        channels_last: store convolution weights in this layout, which is faster on CPUs.
        adapter: the model's adapter; None: the installed one that knows the model.

    Raises:
        DsconvertError: the model can't be traced, or nothing says what its inputs look like.
    """
    model = unwrapped(model)
    with undisturbed():
        known = adapter_for(model) if adapter is None else as_adapter(adapter)
        made = _lean(model, inputs, known)
    return in_channels_last(made) if channels_last else made


def _lean(model: nn.Module, inputs: Inputs | None, adapter: Adapter | None) -> nn.Module:
    types = types_of(model, adapter)
    made = owned_copy(model)
    gates = tuple({type(m) for m in made.modules() if is_gate(m)})
    graph = trace_graph(
        made,
        examples=examples_of(model, inputs, adapter=adapter),
        leaf_types=(*gates, *types.noises, *types.norms),
    ).graph
    for chain in find_chains(made, graph, adapter, types):
        conv: Any = made.get_submodule(chain.conv) if chain.conv else None
        noise: Any = made.get_submodule(chain.noise) if chain.noise else None
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
    use_operators(made)
    return made
