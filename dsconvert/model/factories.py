"""Tensors that ``forward`` makes from the shape of another: recorded, not made, while tracing.

``torch.zeros(x.shape[0], 1, h, w)`` takes numbers. While torch.fx traces, they are proxies, which
torch's own argument parser refuses before anybody could record the call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.overrides import get_ignored_functions, get_overridable_functions

_NAMES = (
    "arange", "empty", "eye", "full", "linspace", "logspace", "normal", "ones", "rand", "randint",
    "randn", "randperm", "scalar_tensor", "tensor", "zeros",
)  # fmt: skip


@contextmanager
def recorded_factories(record: Callable[..., Any]) -> Generator[None, None, None]:
    """Meanwhile, let ``record(function, args, kwargs)`` take calls that have a proxy among them."""
    # torch remembers, when first asked, which of its functions can't be overridden: it must not
    # find these here, and hold them (and a whole model with them) for good.
    get_ignored_functions()
    get_overridable_functions()
    plain = {name: getattr(torch, name) for name in _NAMES}
    for name, function in plain.items():
        setattr(torch, name, _recording(function, record))
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(torch, name, function)


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
