"""One model, ready to be timed, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from dsconvert.bench import memory
from dsconvert.bench.machine import running, seconds_of, settle, weight_type
from dsconvert.bench.records import Operation
from dsconvert.config.measure import Settings
from dsconvert.errors import DsconvertError, MeasureError
from dsconvert.model.editing import copied
from dsconvert.util.memory_format import in_channels_last

Inputs = Callable[[int, torch.Generator], tuple[Any, ...]]


class Subject(Protocol):
    """Something that can be run and measured, here or in another process."""

    @property
    def name(self) -> str:
        """For the report."""
        ...

    @property
    def params(self) -> int:
        """Parameters."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures should know."""
        ...

    def seconds(self, operation: Operation) -> float:
        """Run once; wall-clock seconds."""
        ...

    def kept(self, operation: Operation) -> int:
        """Bytes of activations kept for backward."""
        ...

    def peak(self, operation: Operation) -> int | None:
        """Peak memory in bytes, or None where it can't be told apart from other things."""
        ...

    def close(self) -> None:
        """Let go of the model (and of its process)."""
        ...


def arguments(inputs: Inputs, batch: int) -> tuple[Any, ...]:
    """The same arguments in every call and every process."""
    return tuple(inputs(batch, torch.Generator().manual_seed(batch)))


class LocalSubject:
    """A model in this process.

    The model is copied; the copy is put on the device, in the type and layout that the settings
    name. A forward pass is timed in eval mode without gradients. A step is forward, mean square of
    the output, backward, in training mode with every parameter trainable.

    Args:
        name: for the report.
        model: left as it was.
        inputs: ``inputs(n, generator)``, the positional arguments of a call with batch n.
        settings: where and how.
        base: bytes in memory that are none of the model's, where this process serves it alone;
            None: peak memory can't be told.
        copy: False where the model may be changed (it was made for this).
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        inputs: Inputs,
        settings: Settings,
        *,
        base: int | None = None,
        copy: bool = True,
    ) -> None:
        self.name = name
        self.notes: tuple[str, ...] = ()
        self._settings = settings = settle(settings)
        self._inputs = inputs
        self._base = base
        model = copied(model) if copy else model
        self.params = sum(p.numel() for p in model.parameters())
        kind = weight_type(settings)
        model = model.to(settings.device)
        # Only what is floating is converted; an embedding's indices stay what they are.
        model = model.to(kind) if kind != torch.float32 else model
        if settings.channels_last:
            model = in_channels_last(model)
        self._model = model
        self._run: Any = torch.compile(model, dynamic=False) if settings.compile else model
        self._arguments: dict[int, tuple[Any, ...]] = {}
        self._training: bool | None = None

    def _args(self, batch: int) -> tuple[Any, ...]:
        if batch not in self._arguments:
            kind = weight_type(self._settings)

            def place(value: Any) -> Any:
                if not isinstance(value, Tensor):
                    return value
                return value.to(
                    self._settings.device, kind if value.is_floating_point() else value.dtype
                )

            made = arguments(self._inputs, batch)
            self._arguments[batch] = tuple(tree_map(place, made))
        return self._arguments[batch]

    def _mode(self, training: bool) -> None:
        if self._training != training:
            self._training = training
            self._model.train(training)
            for parameter in self._model.parameters():
                parameter.requires_grad_(training and parameter.is_floating_point())

    def _forward(self, batch: int) -> Any:
        args = self._args(batch)
        self._mode(False)
        with torch.no_grad(), running(self._settings):
            return self._run(*args)

    def _loss(self, batch: int) -> Tensor:
        args = self._args(batch)
        self._mode(True)
        with running(self._settings):
            out = self._run(*args)
        tensors = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad]
        return torch.stack([t.float().square().mean() for t in tensors]).sum()

    def _step(self, batch: int) -> None:
        self._loss(batch).backward()

    def _once(self, operation: Operation) -> Callable[[], Any]:
        if operation.kind == "forward":
            return lambda: self._forward(operation.batch)
        return lambda: self._step(operation.batch)

    def _guarded(self, operation: Operation, run: Callable[[], Any]) -> Any:
        try:
            return run()
        except DsconvertError:
            raise
        except Exception as error:  # whatever a model, torch.compile or a full device raises
            reason = (str(error).strip().splitlines() or [""])[0]
            s = self._settings
            raise MeasureError(
                f"{self.name} fails in {operation} ({s.dtype} on {s.device}"
                f"{', channels_last' if s.channels_last else ''}"
                f"{', compiled' if s.compile else ''}): {type(error).__name__}: {reason}. "
                "Choose another dtype, a smaller batch, or leave the option out."
            ) from error
        finally:
            # A step leaves gradients; the next one must find none, and a forward pass no memory.
            if operation.kind == "step":
                for parameter in self._model.parameters():
                    parameter.grad = None

    def seconds(self, operation: Operation) -> float:
        """See :class:`Subject`."""
        self._args(operation.batch)
        self._mode(operation.kind == "step")
        run = self._once(operation)
        return self._guarded(operation, lambda: seconds_of(run, self._settings.device))

    def kept(self, operation: Operation) -> int:
        """See :class:`Subject`."""
        owned = [*self._model.parameters(), *self._model.buffers()]
        return self._guarded(
            operation,
            lambda: memory.kept_for_backward(lambda: self._loss(operation.batch), owned),
        )

    def peak(self, operation: Operation) -> int | None:
        """See :class:`Subject`."""
        if self._base is None:
            return None
        base, run = self._base, self._once(operation)
        return self._guarded(operation, lambda: memory.peak(run, self._settings.device, base))

    def close(self) -> None:
        """Let go of the model."""
        self._model = self._run = nn.Identity()
        self._arguments.clear()
