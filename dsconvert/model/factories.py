"""Tensors that ``forward`` makes or draws: recorded, not made, while torch.fx traces.

``torch.zeros(x.shape[0], 1, h, w)`` takes numbers. During a trace they are proxies, which torch's
argument parser rejects before the call can be recorded. And a random draw that ran during the trace
would be a constant of the graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.overrides import (
    TorchFunctionMode,
    get_ignored_functions,
    get_overridable_functions,
)

from dsconvert.errors import TraceError

_NAMES = (
    "arange", "empty", "eye", "full", "linspace", "logspace", "normal", "ones", "rand", "randint",
    "randn", "randperm", "scalar_tensor", "tensor", "zeros",
)  # fmt: skip
_CONVOLUTIONS = ("conv2d", "conv_transpose2d")
"""Of ``torch.nn.functional``: torch 2.6 rejects a number of groups that is a proxy."""


@contextmanager
def recorded_factories(record: Callable[..., Any]) -> Generator[None, None, None]:
    """Let ``record(function, args, kwargs)`` take the calls with a proxy among their arguments."""
    # torch caches, at the first call, which of its functions can't be overridden. The cache must
    # not hold the functions below, which refer to a whole model.
    get_ignored_functions()
    get_overridable_functions()
    places = [(torch, name) for name in _NAMES] + [(F, name) for name in _CONVOLUTIONS]
    plain = [(module, name, getattr(module, name)) for module, name in places]
    for module, name, function in plain:
        setattr(module, name, _recording(function, record))
    try:
        yield
    finally:
        for module, name, function in plain:
            setattr(module, name, function)


def _recording(function: Any, record: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _holds_proxy(args) or _holds_proxy(tuple(kwargs.values())):
            return record(function, args, kwargs)
        return function(*args, **kwargs)

    return call


def _holds_proxy(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_proxy(each) for each in value)
    return isinstance(value, fx.Proxy)


_DRAWS: frozenset[Any] = frozenset(
    {torch.randn, torch.rand, torch.randint, torch.randperm, torch.normal, torch.bernoulli}
)
_DRAWS_IN_PLACE = frozenset(
    {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "log_normal_", "cauchy_"}
)


class RecordedDraws(TorchFunctionMode):
    """Let ``record(function, args, kwargs)`` take random draws, unless ``paused()``."""

    def __init__(self, record: Callable[..., Any], paused: Callable[[], bool]) -> None:
        super().__init__()
        self._record, self._paused = record, paused

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused():
            return func(*args, **kwargs)
        if func in _DRAWS:
            return self._record(func, args, kwargs)
        drawn = getattr(func, "__name__", "") in _DRAWS_IN_PLACE
        if drawn and args and isinstance(args[0], Tensor):
            raise TraceError(f"{func.__name__} draws random numbers into a tensor made in forward")
        return func(*args, **kwargs)
