"""Training goes on with less memory where the device's is full: ``recompute="auto"``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dsconvert.config.train import TrainConfig
from dsconvert.errors import DsconvertError
from dsconvert.forms.lean_training import LeanBatchNorm2d, LeanConditionalNorm
from dsconvert.train.passes import Phase
from dsconvert.train.state import TrainState, changing_buffers, use_lean_form
from dsconvert.train.step_graph import forget_passes
from dsconvert.train.tensors import copy_tensors
from dsconvert.util.full_memory import is_memory_full
from dsconvert.util.processes import Processes

_LOG = logging.getLogger(__name__)


IMAGES_GO = (
    "the device's memory is full: the images that were kept on it are read from their files again"
)
LEAN_COMES = (
    "the device's memory is full: the generator now recomputes maps in the backward pass "
    "(recompute lean), with the same gradients"
)


@dataclass(kw_only=True)
class MemoryFallback:
    """Runs phases; where the memory is too small for one, it is repeated with less.

    The images that are kept on the device go first, since they cost time alone; then G takes its
    lean form.

    Args:
        active: whether to fall back.
        release: frees what the training can do without, and returns whether there was any.
    """

    active: bool
    release: Callable[[], bool] | None = None
    _kept: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(
        cls, config: TrainConfig, procs: Processes, release: Callable[[], bool] | None = None
    ) -> MemoryFallback:
        """Return the fallback that the settings ask for.

        A CPU has none: there, the system ends a process for which the memory is too small. Nor have
        several processes, which exchange messages in the middle of a pass.
        """
        alone = procs.world == 1 and procs.device.type != "cpu"
        return cls(active=config.recompute == "auto" and alone, release=release)

    def run(
        self, phase: Phase, config: TrainConfig, state: TrainState, run: Callable[[], Tensor]
    ) -> Tensor:
        """Run a phase; ``run`` starts from the buffers and zero gradients, and may be repeated.

        Raises:
            Exception: the error of ``run``, if it is not of full memory, or nothing is left that
                would help.
        """
        while self.active:
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
            for p in phase.parameters(state):
                p.grad = None
            forget_passes(state)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            copy_tensors(buffers, self._kept)
            said = self._need_less(config, state)
            if said is None:
                raise full
            _LOG.warning(said)
        return run()

    def _need_less(self, config: TrainConfig, state: TrainState) -> str | None:
        """Give up the images, else the generator's ordinary form; return a sentence about it."""
        if self.release is not None and self.release():
            return IMAGES_GO
        self.active, self._kept = False, []
        try:
            use_lean_form(state, config)
        except DsconvertError:  # it can't be traced
            return None
        # A generator without steps that the lean form joins, such as StyleGAN2's, needs as much.
        joined = (LeanBatchNorm2d, LeanConditionalNorm)
        return LEAN_COMES if any(isinstance(m, joined) for m in state.run_g.modules()) else None


def needs_less(config: TrainConfig) -> str:
    """Return what needs less memory than the training with these settings did."""
    # Blocks need less than the lean form, and help generators for which that finds nothing to do.
    begin = "Begin" if config.recompute == "blocks" else "Resume with --recompute blocks, or begin"
    return f"{begin} with a smaller --micro-batch or --batch, or with --precision bf16."
