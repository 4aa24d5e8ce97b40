"""Build an architecture of a file in no more memory than the tensors of the file suggest."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_SHARE = 16
_SLACK = 1 << 28
"""Elements beside those of the file: values that an architecture computes while it is built."""


class _Bounded(TorchDispatchMode):
    """Count the elements of new tensors that are not on the meta device; stop at a limit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not any(r.alias_info for r in func._schema.returns):  # neither in place nor a view
            self._count(args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _count(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count before memory is taken: a shape that is given, or that of the operands together."""
        tensors = [a for a in args if isinstance(a, Tensor)]
        given = tensors[0].device if tensors else kwargs.get("device")
        if given is not None and torch.device(given).type == "meta":
            return
        size = args[0] if args and not tensors else ()
        if isinstance(size, list | tuple):
            count = math.prod(n for n in size if isinstance(n, int))
        else:
            count = 1
        if tensors:
            try:
                count = math.prod(torch.broadcast_shapes(*(t.shape for t in tensors)))
            except RuntimeError:  # a product of matrices, for example
                count = sum(t.numel() for t in tensors)
        self._left -= count
        if self._left < 0:
            raise ValueError("it describes a generator that is far larger than the file's tensors")


@contextmanager
def bounded(elements: int) -> Generator[None, None, None]:
    """Limit the memory of the modules that are built inside.

    The meta device takes no memory, and has no limit.

    Args:
        elements: of the file's tensors.

    Raises:
        ValueError: far more memory than these tensors have would be taken.
    """
    with _Bounded(_SHARE * elements + _SLACK):
        yield
