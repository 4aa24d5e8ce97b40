"""Architectures without values, for weights that come from a file."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_VALUES_ONLY = frozenset(
    {Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_, nn.functional.normalize}
)
"""Functions that return a tensor of their first argument's shape and type."""


class _WithoutValues(TorchFunctionMode):
    """Leave out the computation of values that a tensor on the meta device does not have.

    There every such operation is Python code of torch: seconds for an architecture with spectral
    norm, and for the import of torch's compiler.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _VALUES_ONLY and args and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def blank() -> Generator[None, None, None]:
    """Build modules on the meta device: no memory is taken, no random number is drawn."""
    with torch.device("meta"), _WithoutValues():
        yield
