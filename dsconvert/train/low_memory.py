"""Training goes on with less memory where the device's is full: ``recompute="auto"``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dsconvert.config.train import TrainConfig
from dsconvert.errors import DsconvertError
from dsconvert.train.passes import Phase
from dsconvert.train.state import TrainState, changing_buffers, use_lean_form
from dsconvert.train.step_graph import forget_passes
from dsconvert.train.tensors import copy_tensors
from dsconvert.util.full_memory import is_memory_full
from dsconvert.util.processes import Processes

_LOG = logging.getLogger(__name__)


@dataclass(kw_only=True)
class MemoryFallback:
    """Runs phases; at the first one for which the memory is too small, G takes its lean form.

    Args:
        active: whether to fall back.
    """

    active: bool
    _kept: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, config: TrainConfig, procs: Processes) -> MemoryFallback:
        """Return the fallback that the settings ask for.

        A CPU has none: there, the system ends a process for which the memory is too small. Nor have
        several processes, which exchange messages in the middle of a pass.
        """
        alone = procs.world == 1 and procs.device.type != "cpu"
        return cls(active=config.recompute == "auto" and alone)

    def run(
        self, phase: Phase, config: TrainConfig, state: TrainState, run: Callable[[], Tensor]
    ) -> Tensor:
        """Run a phase; ``run`` starts from the buffers and zero gradients, and may be repeated.

        Raises:
            Exception: the error of ``run``, if it is not of full memory, or the lean form does not
                help.
        """
        if not self.active:
            return run()
        buffers = changing_buffers(state)
        if len(self._kept) == len(buffers):
            copy_tensors(self._kept, buffers)
        else:
            self._kept = [b.clone() for b in buffers]
        try:
            return run()
        except Exception as error:
            if not is_memory_full(error):
                raise
            full = error.with_traceback(None)
        # Outside of the handler: the error holds the frames, and they hold the tensors.
        self.active = False
        for p in phase.parameters(state):
            p.grad = None
        forget_passes(state)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        copy_tensors(buffers, self._kept)
        self._kept = []
        try:
            use_lean_form(state, config)
        except DsconvertError:  # it can't be traced
            raise full from None
        _LOG.warning(
            "the device's memory is full: the generator now recomputes maps in the backward pass "
            "(recompute lean), with the same gradients"
        )
        return run()
