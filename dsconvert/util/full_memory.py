"""Errors of full memory, on any device, and work that goes on with smaller batches after one.

torch is not imported here: an error is known by its type's name and its text.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

_TEXTS = ("can't allocate memory", "not enough memory", "out of memory")
"""In the message of a ``RuntimeError`` of the allocators for the CPU, MPS and XPU."""


def is_memory_full(error: BaseException) -> bool:
    """Return whether an error says that the memory of a device, or of the computer, is full."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(t in text for t in _TEXTS)


def halving(run: Callable[[int, int], T], count: int) -> Iterator[T]:
    """Yield the results of ``run(start, stop)`` for consecutive parts of ``count`` items.

    The first part is everything. Where the memory is full, the part is halved, and the smaller size
    stays for the rest.

    Args:
        run: works on the items from ``start`` to ``stop``.
        count: number of items, at least 1.

    Raises:
        Exception: the error of ``run`` for a single item, or one that is not of full memory.
    """
    start, size = 0, count
    while start < count:
        stop = min(start + size, count)
        try:
            made = run(start, stop)
        except Exception as error:
            if size == 1 or not is_memory_full(error):
                raise
            size = -(-size // 2)
            made = None
        if made is None:
            # Outside of the handler: the error holds the frames, and they hold the tensors.
            _release()
            continue
        yield made
        start = stop


def _release() -> None:
    """Give back what torch's allocator keeps."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
