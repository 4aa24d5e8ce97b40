"""Observe one run of a model, and leave the model as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from dsconvert.errors import TraceError
from dsconvert.model.copying import isolate_hooks, isolated_copy, owned_copy
from dsconvert.model.inputs import fresh_args, map_tensors, tensors_of
from dsconvert.model.one_dimensional import ConvTypes
from dsconvert.records import Shape


@contextmanager
def undisturbed() -> Generator[None, None, None]:
    """Restore the random states of torch, NumPy and Python at the end, and leave inference mode.

    A sampler or a ``forward`` may draw from any of them. A tensor that is made in inference mode
    can't be trained or written in place outside, and the results leave this context.
    """
    python, numpy = random.getstate(), np.random.get_state()
    # Leaving inference mode turns gradients on; elsewhere the caller's mode stays.
    inference = torch.is_inference_mode_enabled()
    normal = torch.inference_mode(mode=False) if inference else nullcontext()
    try:
        with torch.random.fork_rng(), normal:
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def evaluating(model: nn.Module) -> Generator[None, None, None]:
    """Put ``model`` in eval mode, and restore the mode of every module at the end.

    The random state is forked too, so that the caller's generator does not advance. The plain
    ``weight`` that norm hooks store on a module is restored: on a large model the copies of all
    kernels would stay in memory.
    """
    modes = {m: m.training for m in model.modules()}
    weights = {m: m.__dict__["weight"] for m in modes if "weight" in m.__dict__}
    model.eval()
    try:
        with undisturbed(), torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, weight in weights.items():
            module.__dict__["weight"] = weight


def meta_copy(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` without data: every tensor is on the meta device."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers, module.__dict__):
            for value in table.values():
                if isinstance(value, nn.Parameter):
                    memo[id(value)] = nn.Parameter(value.detach().to("meta"), value.requires_grad)
                elif isinstance(value, torch.Tensor):
                    memo[id(value)] = value.detach().to("meta")
    made = owned_copy(model, memo)
    isolate_hooks(made, memo)
    return made


@dataclass
class Observation:
    """The calls of one run, by module name.

    Attributes:
        calls: how often each module ran; also through ``module.forward(...)``.
        inputs: shape of the first argument of its first call.
        outputs: shape of what that returned.
        reads: of a convolution, an attribute that another module's ``forward`` read.
        extra: of a convolution, an argument of its call beside the input.
    """

    calls: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, Shape] = field(default_factory=dict)
    outputs: dict[str, Shape] = field(default_factory=dict)
    reads: dict[str, str] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)

    def record(self, name: str, args: tuple[Any, ...], output: Any) -> None:
        """Record a call that has ended."""
        self.calls[name] = self.calls.get(name, 0) + 1
        if args and isinstance(args[0], torch.Tensor):
            self.inputs.setdefault(name, tuple(args[0].shape))
        if isinstance(output, torch.Tensor):
            self.outputs.setdefault(name, tuple(output.shape))


_OWN = frozenset(
    {"weight", "bias", "in_channels", "out_channels", "kernel_size", "stride", "padding"}
    | {"dilation", "groups", "output_padding", "padding_mode", "weight_orig", "weight_g"}
    | {"weight_v", "_conv_forward", "parametrizations"}
)
"""Attributes of a convolution that the modules which replace it lack."""


def _guarded(name: str, conv: nn.Module, observed: Observation) -> None:
    """Let ``conv``, a module of a copy, record its calls and the reads of its attributes."""
    kind: Any = type(conv)
    depth = 0

    def within(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal depth
        depth += 1
        try:
            output = call(*args, **kwargs)
        finally:
            depth -= 1
        if not depth:
            if kwargs.keys() - {"input"} or len(args) > 1:
                observed.extra.setdefault(name, next(iter(kwargs), "a second argument"))
            observed.record(name, args or (kwargs.get("input"),), output)
        return output

    def read(self: nn.Module, attribute: str) -> Any:
        if not depth and attribute in _OWN:
            observed.reads.setdefault(name, attribute)
        if attribute == "__class__":
            return kind
        value = kind.__getattribute__(self, attribute)
        if attribute == "forward":
            return lambda *args, **kwargs: within(value, args, kwargs)
        return value

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return within(lambda *a, **k: kind.__call__(self, *a, **k), args, kwargs)

    conv.__class__ = type(kind.__name__, (kind,), {"__getattribute__": read, "__call__": call})


def _observe(model: nn.Module, example_inputs: Sequence[Any]) -> Observation:
    """Run ``model``, a copy, once; record which modules run, how often, with which shapes."""
    observed = Observation()
    # A module with two names is observed once, under its first name.
    for name, module in list(model.named_modules()):
        if isinstance(module, ConvTypes):
            _guarded(name, module, observed)
        else:
            module.register_forward_hook(_recording(name, observed))
    try:
        with evaluating(model):
            model(*example_inputs)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} fails on its example inputs "
            f"({', '.join(_describe(x) for x in example_inputs)}): "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else error!r}. "
            "Mend inputs= or example_inputs= (in a command --input, or --calibration FILE.npz)."
        ) from error
    return observed


def observe(model: nn.Module, example_inputs: Sequence[Any], *, owned: bool = False) -> Observation:
    """Observe a run of a copy.

    Of a batch the run is on the meta device (no data, no time), unless the model needs data. One
    sample takes less time than the import of the Python code that torch needs for that device.

    Args:
        model: does not change.
        example_inputs: positional arguments of one forward call.
        owned: the copy may share the parameters, since the model's ``forward`` writes into none.

    Raises:
        TraceError: the model fails on its example inputs.
    """
    if any(t.dim() and len(t) > 1 for t in tensors_of(tuple(example_inputs))):
        try:
            inputs = map_tensors(lambda x: x.to("meta"), tuple(example_inputs))
            return _observe(meta_copy(model), inputs)
        except Exception:  # the model needs data, and may raise any error without
            pass
    twin = isolated_copy(model, share_parameters=owned)
    return _observe(twin, copy.deepcopy(tuple(example_inputs)))


def first_failure(model: nn.Module, example_inputs: Sequence[Any]) -> tuple[str, Exception] | None:
    """Run ``model``, a copy, once; return the innermost module that fails, with its error."""
    entered: list[str] = []
    for name, module in list(model.named_modules()):
        module.register_forward_pre_hook(lambda *_, name=name: entered.append(name))
        module.register_forward_hook(lambda *_: entered.pop() and None)
    try:
        with evaluating(model):
            model(*fresh_args(example_inputs))
    except Exception as error:
        return (entered[-1] if entered else ""), error
    return None


def _recording(name: str, observed: Observation) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        observed.record(name, args, output)

    return hook


def _describe(value: Any) -> str:
    """Return shapes in place of tensors, and types in place of other objects."""
    if isinstance(value, torch.Tensor):
        return str(list(value.shape))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_describe(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_describe, value))})"
    plain = isinstance(value, bool | int | float | str | None)
    return repr(value) if plain else f"a {type(value).__name__}"
