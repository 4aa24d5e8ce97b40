"""Use one thread for small operations and all of them for large ones.

A fit is tens of thousands of operations that take less than a millisecond. Each parallel one ends
with a barrier: on a machine with other work it waits until the last thread gets a processor again,
which takes several times as long as the operation itself.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

LARGE = 200_000_000
"""Multiply-adds of an operation that is worth a barrier: about ten milliseconds of one thread."""


class _Threads:
    """The number of threads that :func:`one_thread` has set aside; 1 outside of it."""

    aside = 1


@contextmanager
def one_thread() -> Generator[None]:
    """Run the operations of a block on one thread, but for those under :func:`all_threads`."""
    before, outer = torch.get_num_threads(), _Threads.aside
    _Threads.aside = max(before, outer)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _Threads.aside = outer


@contextmanager
def all_threads(work: float) -> Generator[None]:
    """Run an operation of ``work`` multiply-adds on all threads if it is large."""
    before = torch.get_num_threads()
    if work < LARGE or before >= _Threads.aside:
        yield
        return
    torch.set_num_threads(_Threads.aside)
    try:
        yield
    finally:
        torch.set_num_threads(before)
