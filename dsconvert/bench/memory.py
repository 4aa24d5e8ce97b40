"""The memory of a run: activations kept for the backward pass, and the peak."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STATUS = Path("/proc/self/status")


def kept_for_backward(run: Callable[[], Any], owned: Iterable[Tensor]) -> int:
    """Return the bytes that autograd keeps of one forward pass; each storage counts once.

    Args:
        run: the forward pass; its result lives while the storages are counted.
        owned: tensors of the model (parameters and buffers); their storages do not count.
    """
    left_out = {t.untyped_storage().data_ptr() for t in owned}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in left_out:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    # The packed tensors live as long as the result, so no address is reused.
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    total = sum(storages.values())
    del result
    return total


def _status(field: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    line = next((x for x in lines if x.startswith(field + ":")), None)
    return int(line.split()[1]) * 1024 if line else None


def resident() -> int | None:
    """Return the resident bytes of this process; None if the system does not report them."""
    return _status("VmRSS")


def _reset_peak() -> bool:
    # Return the memory freed by earlier runs first, so that it does not count for this run.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak(run: Callable[[], Any], device: str, base: int) -> int | None:
    """Return the peak bytes during ``run``, above ``base``.

    On CUDA these are the bytes allocated by torch on that device. On the CPU they are the resident
    bytes of the whole process (Linux; None elsewhere), so the process must do nothing else.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - base
    if torch.device(device).type != "cpu" or not _reset_peak():
        return None
    run()
    highest = _status("VmHWM")
    return None if highest is None else max(0, highest - base)
