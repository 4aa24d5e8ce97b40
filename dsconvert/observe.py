"""Looking at a model while it runs once, and leaving it as it was."""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dsconvert.errors import TraceError
from dsconvert.records import Shape


@contextmanager
def evaluating(model: nn.Module) -> Generator[None, None, None]:
    """Put ``model`` in eval mode for a while and give every module its own mode back.

    The random state is forked too: looking at a model must not move the caller's generator. And the
    plain ``weight`` that norm hooks leave behind is put back as it was: on a large model the copies
    of all kernels would stay in memory.
    """
    modes = {m: m.training for m in model.modules()}
    weights = {m: m.__dict__["weight"] for m in modes if "weight" in m.__dict__}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, weight in weights.items():
            module.__dict__["weight"] = weight


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of ``model`` without data: every tensor on the meta device, nothing is duplicated."""
    memo: dict[int, object] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers, module.__dict__):
            for value in table.values():
                if isinstance(value, nn.Parameter):
                    memo[id(value)] = nn.Parameter(value.detach().to("meta"), value.requires_grad)
                elif isinstance(value, torch.Tensor):
                    memo[id(value)] = value.detach().to("meta")
    return copy.deepcopy(model, memo)


@dataclass
class Watch:
    """Which modules ran, how often, and the shapes of their first call, by name."""

    calls: dict[str, int]
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]


def _watch(model: nn.Module, example_inputs: Sequence[Any]) -> Watch:
    """Run the model once and note which modules ran, how often, with which shapes."""
    watch = Watch({}, {}, {})
    # One module under two names is one module: named_modules yields its first name.
    handles = [
        module.register_forward_hook(_note(name, watch)) for name, module in model.named_modules()
    ]
    try:
        with evaluating(model):
            model(*example_inputs)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} fails on its example inputs "
            f"({', '.join(_describe(x) for x in example_inputs)}): "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else error!r}. "
            "Pass example_inputs that the model accepts."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return watch


def observe(model: nn.Module, example_inputs: Sequence[Any]) -> Watch:
    """Watch a run on the meta device (no data, no time); on the real one where that fails."""
    try:
        twin = meta_copy(model)
        inputs = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in example_inputs]
        return _watch(twin, inputs)
    except Exception:  # whatever a model does that meta tensors can't: run it for real
        return _watch(model, example_inputs)


def _note(name: str, watch: Watch) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        watch.calls[name] = watch.calls.get(name, 0) + 1
        if args and isinstance(args[0], torch.Tensor):
            watch.inputs.setdefault(name, tuple(args[0].shape))
        if isinstance(output, torch.Tensor):
            watch.outputs.setdefault(name, tuple(output.shape))

    return hook


def _describe(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, torch.Tensor) else repr(value)
