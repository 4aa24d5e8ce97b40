"""One process or many: accelerate starts them and knows the device; the loop only needs means."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from dsconvert.errors import MissingExtraError, TrainingError, UsageError
from dsconvert.util.devices import for_work
from dsconvert.util.extras import pip_install


class Processes(Protocol):
    """What the loop asks of the processes that train together."""

    rank: int
    world: int
    device: torch.device

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        ...

    def share(self, value: Any) -> Any:
        """The first process's ``value``, in all of them."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        ...

    def wait(self) -> None:
        """Until all are here."""
        ...


class Alone:
    """A single process."""

    rank, world = 0, 1

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = for_work(device)

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to do."""

    def share(self, value: Any) -> Any:
        """``value``."""
        return value

    def any(self, flag: bool) -> bool:
        """``flag``."""
        return flag

    def wait(self) -> None:
        """Nothing to do."""


class Together:
    """The processes that ``accelerate launch`` or ``torchrun`` started.

    Raises:
        MissingExtraError: accelerate is not installed.
        TrainingError: they did not find each other; each would train a run of its own.
    """

    def __init__(self) -> None:
        try:
            module = import_module("accelerate")
        except ImportError as error:
            raise MissingExtraError(
                "training with several processes needs accelerate, which is not installed: "
                f"{pip_install('train')}."
            ) from error
        # Without a GPU accelerate joins processes only where it is told that the CPU is meant.
        self._accelerator: Any = module.Accelerator(cpu=not torch.cuda.is_available())
        self._utils: Any = import_module("accelerate.utils")
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if self.world != started:
            raise TrainingError(
                f"{started} processes were started, and accelerate joins {self.world}: check its "
                "configuration (accelerate env), or start them with torchrun."
            )

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """One message for all of them."""
        flat = self._utils.reduce(torch.cat([t.flatten() for t in tensors]), "mean")
        at = 0
        for tensor in tensors:
            tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
            at += tensor.numel()

    def share(self, value: Any) -> Any:
        """By pickle, from the first."""
        box = [value]
        self._utils.broadcast_object_list(box)
        return box[0]

    def any(self, flag: bool) -> bool:
        """By a mean of one number."""
        told = torch.tensor(float(flag), device=self.device)
        return bool(self._utils.reduce(told, "sum") > 0)

    def wait(self) -> None:
        """A barrier."""
        self._accelerator.wait_for_everyone()


def processes(device: str | None = None) -> Processes:
    """:class:`Together` where a launcher has started several processes, :class:`Alone` otherwise.

    Raises:
        MissingExtraError: several processes without accelerate.
        UsageError: torch can't use the device, or one is named for several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Alone(device)
    if device is not None:
        raise UsageError(
            f"several processes can't share the device {device!r}: leave it out; the launcher "
            "gives each its own."
        )
    return Together()
