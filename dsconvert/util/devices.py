"""Devices by their names, checked before work begins on one."""

from __future__ import annotations

import torch

from dsconvert.errors import UsageError


def accelerator() -> str:
    """The first kind of accelerator that torch can use here; ``cpu`` where there is none."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def usable(name: torch.device | str) -> torch.device:
    """The device of that name.

    Raises:
        UsageError: torch knows no such device, or can't use it here.
    """
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no data")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UsageError(
            f"device {str(name)!r} can't be used here: {reason}. This torch {torch.__version__} "
            f"offers {', '.join(dict.fromkeys((accelerator(), 'cpu')))}; give --device one of "
            "these."
        ) from None
    return device


def for_work(name: torch.device | str | None) -> torch.device:
    """The device of that name; None: CUDA where it is, else the CPU (MPS has not been tried).

    Raises:
        UsageError: see :func:`usable`.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return usable(name)
