"""One model, ready to be measured, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from dsconvert.bench import memory
from dsconvert.bench.machine import running, seconds_of, seconds_of_each, settle, weight_type
from dsconvert.bench.records import Operation
from dsconvert.config.measure import Settings
from dsconvert.errors import DsconvertError, MeasureError
from dsconvert.model.copying import isolated_copy
from dsconvert.model.editing import trainable
from dsconvert.model.inputs import Inputs, as_args, checked, fresh_args
from dsconvert.model.observe import undisturbed
from dsconvert.model.precision import WORKING, widen
from dsconvert.util.memory_format import in_channels_last


class Subject(Protocol):
    """A model that can be measured, in this process or in another one."""

    @property
    def name(self) -> str:
        """The name in the report."""
        ...

    @property
    def params(self) -> int:
        """The number of parameters."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the figures."""
        ...

    def seconds(self, operation: Operation) -> float:
        """Run once; return the wall-clock seconds."""
        ...

    def kept(self, operation: Operation) -> int:
        """Return the bytes of activations kept for the backward pass."""
        ...

    def peak(self, operation: Operation) -> int | None:
        """Return the peak memory in bytes; None if it can't be measured."""
        ...

    def close(self) -> None:
        """Free the model and end its process."""
        ...


def arguments(inputs: Inputs, batch: int) -> tuple[Any, ...]:
    """Return the arguments of a call, the same in every process."""
    return as_args(checked(inputs)(batch, torch.Generator().manual_seed(batch)))


class LocalSubject:
    """A model in this process.

    The model is copied, and the copy put on the device, in the type and layout of the settings. A
    forward pass is timed in eval mode without gradients. A step is forward, mean square of the
    output, backward, in training mode with every parameter trainable.

    Args:
        name: in the report.
        model: it does not change.
        inputs: ``inputs(n, generator)`` returns the positional arguments of a call with batch n.
        settings: device, type and layout.
        base: bytes of this process without the model, if it does nothing else; None: the peak
            memory can't be measured.
        copy: whether to copy the model.
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
        model = isolated_copy(model) if copy else model
        self.params = sum(p.numel() for p in model.parameters())
        dtype = weight_type(settings)
        model = model.to(settings.device)
        # Only floating-point tensors are converted, not the indices of an embedding, and for
        # float32 no complex numbers.
        model = widen(model) if dtype == WORKING else model.to(dtype)
        if settings.channels_last:
            model = in_channels_last(model)
        self._model = model
        self._run: Any = torch.compile(model, dynamic=False) if settings.compile else model
        self._arguments: dict[int, tuple[Any, ...]] = {}
        self._training: bool | None = None

    def _args(self, batch: int) -> tuple[Any, ...]:
        if batch not in self._arguments:
            dtype = weight_type(self._settings)

            def place(value: Any) -> Any:
                if not isinstance(value, Tensor):
                    return value
                return value.to(
                    self._settings.device, dtype if value.is_floating_point() else value.dtype
                )

            made = arguments(self._inputs, batch)
            self._arguments[batch] = tuple(tree_map(place, made))
        return self._arguments[batch]

    def _mode(self, training: bool) -> None:
        if self._training != training:
            self._training = training
            self._model.train(training)
            trainable(self._model, training)

    def _forward(self, args: tuple[Any, ...]) -> Any:
        self._mode(False)
        with torch.no_grad(), running(self._settings):
            return self._run(*args)

    @torch.enable_grad()
    def _loss(self, args: tuple[Any, ...]) -> Tensor:
        self._mode(True)
        with running(self._settings):
            out = self._run(*args)
        tensors = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.requires_grad]
        return torch.stack([t.float().square().mean() for t in tensors]).sum()

    def _step(self, args: tuple[Any, ...]) -> None:
        self._drop_gradients()
        self._loss(args).backward()

    def _drop_gradients(self) -> None:
        for parameter in self._model.parameters():
            parameter.grad = None

    def _once(self, operation: Operation) -> Callable[[], Any]:
        """Return one run, which may write into its arguments; they are copied before it."""
        args = fresh_args(self._args(operation.batch))
        self._mode(operation.kind == "step")
        run = self._forward if operation.kind == "forward" else self._step
        return lambda: run(args)

    def _guarded(self, operation: Operation, run: Callable[[], Any]) -> Any:
        try:
            with undisturbed():
                return run()
        except DsconvertError:
            raise
        except Exception as error:  # a model, torch.compile or a full device raise many types
            reason = (str(error).strip().splitlines() or [""])[0]
            s = self._settings
            raise MeasureError(
                f"{self.name} fails in {operation} ({s.dtype} on {s.device}"
                f"{', channels_last' if s.channels_last else ''}"
                f"{', compiled' if s.compile else ''}): {type(error).__name__}: {reason}. "
                "Choose another dtype, a smaller batch, or leave the option out."
            ) from error
        finally:
            # The gradients of a step must not reach the next run, nor take its memory.
            if operation.kind == "step":
                self._drop_gradients()

    def seconds_of_each(self, operation: Operation, count: int) -> list[float]:
        """Run ``count`` times in a row; return the seconds of each run.

        See :func:`dsconvert.bench.machine.seconds_of_each`.
        """
        runs = iter([self._once(operation) for _ in range(count)])
        device = self._settings.device
        return self._guarded(
            operation, lambda: seconds_of_each(lambda: next(runs)(), device, count)
        )

    def seconds(self, operation: Operation) -> float:
        """See :class:`Subject`."""
        run = self._once(operation)
        return self._guarded(operation, lambda: seconds_of(run, self._settings.device))

    def kept(self, operation: Operation) -> int:
        """See :class:`Subject`."""
        owned = [*self._model.parameters(), *self._model.buffers()]
        args = fresh_args(self._args(operation.batch))
        return self._guarded(
            operation,
            lambda: memory.kept_for_backward(lambda: self._loss(args), owned),
        )

    def peak(self, operation: Operation) -> int | None:
        """See :class:`Subject`."""
        if self._base is None:
            return None
        base, run = self._base, self._once(operation)
        return self._guarded(operation, lambda: memory.peak(run, self._settings.device, base))

    def close(self) -> None:
        """Free the model."""
        self._model = self._run = nn.Identity()
        self._arguments.clear()
