"""A second device without a GPU: tensors that say they are elsewhere, and are computed on the CPU.

An operation on tensors of both devices fails as it does with a GPU, and so does ``numpy()``. The
second device calls itself ``meta``, since torch needs no driver for that one: code that asks for
``cuda`` by name is not tried here. (``fake_cuda`` tries that, but has no numbers.)
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_ACROSS = ("aten._to_copy", "aten.copy_", "aten.index.", "aten.index_put")
"""Operations that may read tensors of both devices."""


class Elsewhere(Tensor):
    """A tensor that says it is on the second device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        made: Any = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=DEVICE,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there = [t for t in tensors if isinstance(t, Elsewhere)]
    here = [t for t in tensors if not isinstance(t, Elsewhere) and t.dim()]
    if there and here and not str(func).startswith(_ACROSS):
        raise RuntimeError(f"{func}: tensors on two devices, {DEVICE} and cpu")
    device = kwargs.get("device")
    wanted = bool(there) if device is None else torch.device(device) == DEVICE
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if str(func).startswith("aten.copy_"):
        wanted = isinstance(args[0], Elsewhere)
    known = {id(t.inner): t for t in there}

    def bare(value: Any) -> Any:
        return value.inner if isinstance(value, Elsewhere) else value

    out = func(*tree_map(bare, args), **tree_map(bare, kwargs))

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, Elsewhere):
            return value
        if id(value) in known:
            return known[id(value)]
        return Elsewhere(value) if wanted else value

    return tree_map(placed, out)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def second_device() -> Generator[None, None, None]:
    """Let :data:`DEVICE` be a device that computes, within this context."""
    with _Mode():
        yield


def moved(model: nn.Module) -> Any:
    """Return a copy of ``model`` on the second device."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers, module.__dict__):
            for value in table.values():
                if isinstance(value, nn.Parameter):
                    made = Elsewhere(value.detach().clone())
                    memo[id(value)] = nn.Parameter(made, value.requires_grad)
                elif isinstance(value, Tensor):
                    memo[id(value)] = Elsewhere(value.detach().clone())
    return copy.deepcopy(model, memo)
