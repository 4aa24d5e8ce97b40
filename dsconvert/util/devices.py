"""Devices by their names, checked before any work, and the memory used on them."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from dsconvert.errors import UsageError
from dsconvert.util.first_line import first_line


def accelerator() -> str:
    """Return the type of the first accelerator that torch can use here, or ``cpu``."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def usable(name: torch.device | str) -> torch.device:
    """Return the device ``name``.

    Raises:
        UsageError: torch knows no such device, or can't use it here.
    """
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no data")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error).rstrip(".")
        raise UsageError(
            f"device {str(name)!r} can't be used here: {reason}. This torch {torch.__version__} "
            f"offers {', '.join(dict.fromkeys((accelerator(), 'cpu')))}; give --device one of "
            "these."
        ) from None
    return device


def for_work(name: torch.device | str | None) -> torch.device:
    """Return the device ``name``; None or ``auto``: CUDA, else the CPU (MPS is untested).

    Raises:
        UsageError: see :func:`usable`.
    """
    if name is None or name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return usable(name)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; a copy from the CPU to CUDA does not wait for the device."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(device, non_blocking=True)
    return tensor.to(device)


def free_memory(device: torch.device) -> int | None:
    """Return the free memory of a device in bytes; None: it is no CUDA device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: torch's allocations on a GPU, the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # Windows has no such module

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def full_float32() -> Generator[None, None, None]:
    """Compute float32 products and convolutions in float32, not in TF32, within this context.

    torch lets cuDNN round the inputs of float32 convolutions to ten bits by default.
    """
    if not torch.cuda.is_available():
        yield
        return
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def rounds_to_tf32() -> tuple[bool, bool]:
    """Return whether factors of float32 convolutions, and of matrix products, become TF32."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    try:
        return bool(cudnn.allow_tf32), bool(matmul.allow_tf32)
    except RuntimeError:  # set through the newer names, which torch does not let us mix
        return cudnn.conv.fp32_precision == "tf32", matmul.fp32_precision == "tf32"
