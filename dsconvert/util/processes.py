"""The processes of a training: one alone, or several that ``accelerate`` joins."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dsconvert.errors import MissingExtraError, TrainingError, UsageError
from dsconvert.util.devices import for_work
from dsconvert.util.extras import pip_install


class Processes(Protocol):
    """The operations that the training loop needs of the processes that train together."""

    rank: int
    world: int
    device: torch.device

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        ...

    def averaging(self, model: nn.Module) -> nn.Module:
        """Return a form of ``model`` whose backward pass averages gradients over the processes."""
        ...

    def share(self, value: Any) -> Any:
        """Return the first process's ``value``, in every process."""
        ...

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is true in any process."""
        ...

    def wait(self) -> None:
        """Wait until every process has called this."""
        ...


class SingleProcess:
    """A single process."""

    rank, world = 0, 1

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = for_work(device)

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Do nothing."""

    def averaging(self, model: nn.Module) -> nn.Module:
        """Return ``model``."""
        return model

    def share(self, value: Any) -> Any:
        """Return ``value``."""
        return value

    def any(self, flag: bool) -> bool:
        """Return ``flag``."""
        return flag

    def wait(self) -> None:
        """Do nothing."""


class JoinedProcesses:
    """The processes that ``accelerate launch`` or ``torchrun`` started.

    Raises:
        MissingExtraError: accelerate is not installed.
        TrainingError: the processes are not joined; each would train a run of its own.
    """

    def __init__(self) -> None:
        try:
            module = import_module("accelerate")
        except ImportError as error:
            raise MissingExtraError(
                "training with several processes needs accelerate, which is not installed: "
                f"{pip_install('train')}."
            ) from error
        # Without a GPU accelerate joins processes only with this argument.
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
        """Replace each tensor by its mean, with one message for all tensors."""
        flat = self._utils.reduce(torch.cat([t.flatten() for t in tensors]), "mean")
        at = 0
        for tensor in tensors:
            tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
            at += tensor.numel()

    def averaging(self, model: nn.Module) -> nn.Module:
        """Return ``model`` in DistributedDataParallel: messages overlap with the backward pass.

        Only parameters that require a gradient now take part. Statistics of batches stay each
        process's own. The wrapper is torch's: accelerate's would add the precision of its own
        configuration to the model.
        """
        device = self.device
        return nn.parallel.DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            # At 128 px the files of an official generator hold blocks that never run.
            find_unused_parameters=True,
        )

    def share(self, value: Any) -> Any:
        """Send the first process's ``value`` to the others as a pickle."""
        box = [value]
        self._utils.broadcast_object_list(box)
        return box[0]

    def any(self, flag: bool) -> bool:
        """Return whether the sum of the flags is above zero."""
        flags = torch.tensor(float(flag), device=self.device)
        return bool(self._utils.reduce(flags, "sum") > 0)

    def wait(self) -> None:
        """Wait at a barrier."""
        self._accelerator.wait_for_everyone()


def processes(device: str | None = None) -> Processes:
    """Return the processes that a launcher has started, or this process alone.

    Raises:
        MissingExtraError: several processes without accelerate.
        UsageError: torch can't use the device, or one is named for several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SingleProcess(device)
    if device is not None:
        raise UsageError(
            f"several processes can't share the device {device!r}: leave it out; the launcher "
            "gives each its own."
        )
    return JoinedProcesses()


def environment(procs: Processes) -> dict[str, Any]:
    """Return the versions and the hardware that a run uses, for its ``settings.json``."""
    device = procs.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": f"{device} {name}".strip(),
        "processes": procs.world,
    }
