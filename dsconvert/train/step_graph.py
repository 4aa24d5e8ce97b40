"""The passes of a step as CUDA graphs: one launch instead of thousands of small kernels.

A step at 256 px launches about 5,000 kernels, and Python takes longer to start many of them than a
GPU to run them. After some ordinary steps each phase's pass (forward, losses, backward) is captured
once. From then on its inputs are copied into the tensors that the graph reads, and the graph is
replayed. The optimisers and the moving average stay outside: they are a few launches for all
tensors, during which the GPU is still busy, and their state stays what checkpoints hold.

The draws of a step do not change: those of the CPU are made before and are inputs; those on the
device follow ``torch.manual_seed`` at each replay. A captured pass is compared with an ordinary one
before it is used, because numbers that Python computes (a random number of a foreign network, say)
become constants of a graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.config.train import TrainConfig
from dsconvert.model.noise_source import ATTRIBUTE
from dsconvert.train.cuda_capture import Capture, CudaCapture
from dsconvert.train.gradients import make_finite
from dsconvert.train.passes import PartInputs, Phase
from dsconvert.train.state import TrainState, changing_buffers
from dsconvert.train.tensors import copy_tensors
from dsconvert.util.first_line import first_line
from dsconvert.util.processes import Processes

ORDINARY = 3
"""Steps before the capture."""
DEVIATION, LEAST = 0.05, 1e-4
"""A gradient may differ by this share of its norm, or by this share of the largest norm: far more
than rounding, far less than another draw."""
_LOG = logging.getLogger(__name__)


def why_no_graph(config: TrainConfig, procs: Processes) -> str | None:
    """Return the reason why steps with these settings can't be captured, or None."""
    if procs.device.type != "cuda":
        return f"the device is {procs.device.type}, and CUDA graphs need CUDA"
    if procs.world > 1:
        return "several processes train together"
    if config.micro_batch is not None and config.micro_batch < config.batch:
        return "the batch is taken in parts (micro_batch)"
    if config.precision == "fp16":
        return "the scaler of fp16 decides in each step"
    if config.compile:
        return "torch.compile is on"
    if config.recompute == "blocks":
        return "recomputed blocks repeat their random draws"
    return None


def draws_ahead(discriminator: nn.Module) -> Callable[[int, tuple[int, int]], Tensor] | None:
    """Return the discriminator's function that draws its augmentation, if it has one."""
    found: Callable[[int, tuple[int, int]], Tensor] | None = getattr(
        discriminator, "augmentation_draws", None
    )
    return found if callable(found) else None


class _ReplayError(Exception):
    """A replay differs from the ordinary pass."""


@dataclass(frozen=True, kw_only=True)
class _Captured:
    inputs: PartInputs
    """Their tensors are read by the graph."""
    output: Tensor
    parameters: list[nn.Parameter]
    gradients: list[Tensor]
    replay: Callable[[], None]

    def run(self, inputs: PartInputs, seed: int) -> Tensor:
        copy_tensors(self.inputs.tensors, inputs.tensors)
        torch.manual_seed(seed)
        self.replay()
        for p, grad in zip(self.parameters, self.gradients, strict=True):
            p.grad = grad
        return self.output.clone()  # the next replay overwrites it

    def takes(self, inputs: PartInputs) -> bool:
        mine, given = self.inputs.tensors, inputs.tensors
        shapes, wanted = ([(t.shape, t.dtype) for t in found] for found in (mine, given))
        return shapes == wanted and self.inputs.plain == inputs.plain


@dataclass(kw_only=True)
class StepGraphs:
    """The graphs of a training, one for each phase.

    Args:
        capture: see :class:`CudaCapture`; None: the steps stay ordinary.
    """

    capture: Capture | None
    _passes: dict[int, int] = field(default_factory=dict)
    """The ordinary passes of each phase so far."""
    _captured: dict[int, _Captured] = field(default_factory=dict)
    problem: str = ""
    """Why a capture has failed."""

    @property
    def complete(self) -> bool:
        """Whether both phases are replayed."""
        return len(self._captured) == 2

    @classmethod
    def of(
        cls, config: TrainConfig, state: TrainState, procs: Processes, capture: Capture | None
    ) -> StepGraphs:
        """Return the graphs that ``config.cuda_graph`` asks for, none yet captured.

        ``capture`` is used instead of CUDA's if it is given.
        """
        if capture is not None:
            return cls(capture=capture)
        wanted = config.cuda_graph != "off" and why_no_graph(config, procs) is None
        if wanted and config.cuda_graph == "auto":
            # Networks that draw on the CPU in their own way would fail in the capture.
            official = any(
                getattr(m, ATTRIBUTE, None) == "official" for m in state.generator.modules()
            )
            wanted = draws_ahead(state.discriminator) is not None and not official
        return cls(capture=CudaCapture(procs.device) if wanted else None)

    def ready(self, phase: Phase) -> bool:
        """Count a call; return whether the phase may run by a graph in this call."""
        passes = self._passes.get(phase.number, 0)
        self._passes[phase.number] = passes + 1
        return self.capture is not None and passes >= ORDINARY

    def run(
        self, phase: Phase, config: TrainConfig, state: TrainState, inputs: PartInputs, seed: int
    ) -> Tensor | None:
        """Run a pass by its graph, which is made at the first call.

        The gradients are finite then.

        Args:
            phase: the pass.
            config: of the run.
            state: of the training.
            inputs: of the pass, on the device.
            seed: of the draws on the device.

        Returns:
            the statistics of the pass; None: the pass has not run, and is to run as usual.
        """
        if self.capture is None:
            return None
        found = self._captured.get(phase.number)
        if found is not None:
            return found.run(inputs, seed) if found.takes(inputs) else None
        buffers = changing_buffers(state)
        before = [b.clone() for b in buffers]
        try:
            return self._begin(phase, config, state, inputs, seed, buffers, before)
        except Exception as error:  # CUDA and the networks raise errors of many types
            self.problem = f"{type(error).__name__}: {first_line(error)[:200]}"
        # Outside of the handler: the error holds the frames, and they hold the tensors.
        capture, self.capture = self.capture, None
        self._captured.clear()
        for p in phase.parameters(state):
            p.grad = None
        forget_passes(state)
        if isinstance(capture, CudaCapture):
            capture.recover()
        copy_tensors(buffers, before)
        _LOG.warning(
            "the step can't be captured in a CUDA graph (%s): the training goes on without, slower "
            "but with the same result",
            self.problem,
        )
        return None

    def _begin(
        self,
        phase: Phase,
        config: TrainConfig,
        state: TrainState,
        inputs: PartInputs,
        seed: int,
        buffers: list[Tensor],
        before: list[Tensor],
    ) -> Tensor:
        """Capture a pass, compare it with an ordinary one, and run it."""
        assert self.capture is not None
        static = inputs.clone()
        learned: list[nn.Parameter] = []

        def run() -> list[Tensor]:
            # What an earlier pass has left belongs to another stream.
            forget_passes(state)
            parameters = phase.parameters(state)
            for p in parameters:
                p.grad = None
                p.requires_grad_(True)
            out = phase.run(config, state, static, 0.0, 1)
            for p in parameters:
                p.requires_grad_(False)
            learned[:] = [p for p in parameters if p.grad is not None]
            gradients = [p.grad for p in learned if p.grad is not None]
            make_finite(gradients)
            return [out, *gradients]

        torch.manual_seed(seed)
        wanted = [t.detach().cpu() for t in run()]
        copy_tensors(buffers, before)
        made, replay = self.capture(run)
        forget_passes(state)
        copy_tensors(buffers, before)
        captured = _Captured(
            inputs=static, output=made[0], parameters=list(learned), gradients=list(made[1:]),
            replay=replay,
        )  # fmt: skip
        found = captured.run(inputs, seed)
        if not _agree(wanted, [found, *captured.gradients]):
            raise _ReplayError("a replay gives other gradients than the ordinary pass")
        self._captured[phase.number] = captured
        return found


def forget_passes(state: TrainState) -> None:
    """Detach what modules keep of their last pass, such as a spectrally normalised weight.

    It holds the nodes that add gradients, which remember the stream of that pass: a capture on
    another stream can't use them.
    """
    models = (state.generator, state.run_g, state.discriminator, state.run_d)
    for model in {id(m): m for m in models if isinstance(m, nn.Module)}.values():
        for module in model.modules():
            kept: dict[str, Any] = vars(module)
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    kept[name] = value.detach()


def _agree(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    """Return whether statistics and gradients are the same but for rounding."""
    pairs = [(a.float(), b.detach().cpu().float()) for a, b in zip(wanted, found, strict=True)]
    norms = [float(a.norm()) for a, _ in pairs]
    largest = max(norms[1:], default=0.0)
    loss, again = (float(t[0]) for t in pairs[0])
    if abs(loss - again) > 0.01 * (1 + abs(loss)):
        return False
    return all(
        float((a - b).norm()) <= DEVIATION * norm + LEAST * largest
        for (a, b), norm in zip(pairs[1:], norms[1:], strict=True)
    )
