"""Models with made-up CUDA tensors: a forward pass checks devices and types, without a GPU.

torch's fake tensors have a shape, a type and a device, and no data. An operation on tensors of two
devices fails as on a card.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

DRAWS = ("rand", "normal", "bernoulli")


@dataclass
class Seen:
    """The draws and the copies between devices of a run."""

    draws: list[torch.device] = field(default_factory=list)
    copies: list[tuple[str, str, int]] = field(default_factory=list)
    """From, to, and the number of elements."""


class _Watch(TorchDispatchMode):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        out = func(*args, **(kwargs or {}))
        name = str(func)
        if isinstance(out, Tensor):
            if any(word in name for word in DRAWS):
                self._seen.draws.append(out.device)
            source = next((a for a in args if isinstance(a, Tensor)), None)
            if source is not None and source.device != out.device:
                copied = (source.device.type, out.device.type, source.numel())
                self._seen.copies.append(copied)
        return out


class FakeCuda:
    """Makes fake CUDA tensors and models of them; see :func:`fake_cuda`."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode

    def tensor(self, t: Tensor) -> Tensor:
        """Return a fake CUDA tensor like ``t``."""
        with self._mode:
            made = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")
            if isinstance(t, nn.Parameter):
                return nn.Parameter(made, t.requires_grad)
        return made.requires_grad_(t.requires_grad)

    def model(self, model: nn.Module) -> Any:
        """Return a copy of ``model`` whose every tensor is a fake CUDA one."""
        memo: dict[int, Any] = {}
        for module in model.modules():
            for table in (module._parameters, module._buffers, module.__dict__):
                for value in table.values():
                    if isinstance(value, Tensor):
                        memo[id(value)] = self.tensor(value.detach() if value.grad_fn else value)
        return copy.deepcopy(model, memo)

    def args(self, args: tuple[Any, ...], dtype: torch.dtype | None = None) -> tuple[Any, ...]:
        """Return the arguments of a call as fake CUDA tensors."""
        return tuple(self.tensor(a if dtype is None else a.to(dtype)) for a in args)

    @contextmanager
    def running(self) -> Generator[Seen, None, None]:
        """Run on fake tensors within this context; yields the draws and copies so far."""
        seen = Seen()
        with self._mode, _Watch(seen):
            yield seen


@contextmanager
def fake_cuda() -> Generator[FakeCuda, None, None]:
    """Make fake CUDA tensors within this context."""
    if torch.__version__.startswith("2.6."):
        pytest.skip("torch 2.6 asks for the driver in operators on fake tensors of a card")
    yield FakeCuda(FakeTensorMode())
