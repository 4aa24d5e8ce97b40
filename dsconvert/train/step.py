"""One step of training: the generator's phase, the discriminator's, and the moving average.

The order of the phases, the losses and the optimisers are those of the official training loop.
Unlike there, every draw of a step (latents, classes, noise, augmentation) follows from the seed,
the step, the phase and the part of the batch alone. So a step gives the same numbers after a
resumption, and whether one process takes its parts or several do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsconvert.config.train import TrainConfig
from dsconvert.data.images import ImageSet
from dsconvert.errors import UsageError
from dsconvert.model.inputs import map_tensors
from dsconvert.train.cuda_capture import Capture
from dsconvert.train.ema import ema_beta, update_ema
from dsconvert.train.gradients import finite_gradients
from dsconvert.train.losses import blur_sigma
from dsconvert.train.low_memory import MemoryFallback
from dsconvert.train.passes import (
    DISCRIMINATOR,
    GENERATOR,
    PartInputs,
    Phase,
    local_gradients,
)
from dsconvert.train.recompute import without_power_iteration
from dsconvert.train.state import SUMS, Latents, TrainState
from dsconvert.train.step_graph import StepGraphs, draws_ahead
from dsconvert.util.devices import to_device
from dsconvert.util.processes import Processes

_MEANS = 4
"""In the seeds, beside the phases' numbers (0, 1) and those of the networks' own draws (2, 3)."""


def draw_seed(seed: int, step: int, phase: int, part: int) -> int:
    """Return a seed of 63 bits for one part of one phase of one step."""
    words = np.random.SeedSequence([seed, step, phase, part]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def parts_of(config: TrainConfig, world: int) -> tuple[int, int]:
    """Return the number of images in a part, and of parts in a step of each process.

    Raises:
        UsageError: the batch is not a multiple of both.
    """
    share, rest = divmod(config.batch, world)
    part = min(config.micro_batch or share, share)
    if rest or not share or share % part:
        raise UsageError(
            f"a batch of {config.batch} can't be cut into {world} process(es) times parts of "
            f"{config.micro_batch or share}: choose a batch that is a multiple of both."
        )
    return part, share // part


@dataclass(kw_only=True)
class Stepper:
    """Runs the steps of one training.

    Attributes:
        config: of the run.
        data: gives the classes of generated images.
        latents: draws the generator's arguments.
        procs: the processes that train together.
        move_means: moves the generator's running means by a call's arguments, and returns them
            (:class:`dsconvert.adapter.Recipe`); None: it has none.
        capture: for tests, instead of a capture of CUDA graphs.
        release: frees memory of the device that training can do without; returns whether there was
            any.
    """

    config: TrainConfig
    data: ImageSet
    latents: Latents
    procs: Processes
    move_means: Callable[[nn.Module, Sequence[Any]], Sequence[Tensor]] | None = None
    capture: Capture | None = None
    release: Callable[[], bool] | None = None
    graphs: StepGraphs | None = None
    """Made in the first step."""
    _memory: MemoryFallback | None = None
    _apart: dict[int, Any] = field(default_factory=dict)
    """Of each phase: the network that averages its gradients over the processes."""

    def run(self, state: TrainState, images: Tensor, labels: Tensor) -> Tensor:
        """Run one step over this process's share of a batch.

        Args:
            state: changed in place; the same one in each call.
            images: uint8 (n, C, R, R).
            labels: float32 (n, classes).

        Returns:
            the statistics of :data:`SUMS`, means over the batch, on the device.
        """
        config, device = self.config, self.procs.device
        part, _ = parts_of(config, self.procs.world)
        shown = to_device(images, device).split(part), to_device(labels, device).split(part)
        batch = list(zip(*shown, strict=True))
        sums = torch.zeros(len(SUMS), device=device)
        sums[:1] = self._phase(GENERATOR, state, batch)
        state.scaler.step(state.opt_g)
        sums[1:] = self._phase(DISCRIMINATOR, state, batch)
        state.scaler.step(state.opt_d)
        state.scaler.update()

        # The labels as they were given: to read them back would wait for the whole step.
        self._move_means(state, labels)
        beta = ema_beta(
            batch=config.batch,
            seen=state.images,
            half_life=config.ema_images,
            rampup=config.ema_rampup,
        )
        update_ema(state.ema, state.generator, beta)
        state.images += config.batch
        state.step += 1
        self.procs.mean_([sums])
        return sums

    @torch.no_grad()
    def _move_means(self, state: TrainState, labels: Tensor) -> None:
        """Move the generator's running means, by latents of their own and the batch's classes."""
        if self.move_means is None:
            return
        part, count = parts_of(self.config, self.procs.world)
        drawn: list[tuple[Any, ...]] = []
        for i, some in enumerate(labels.cpu().split(part)):
            at = self.procs.rank * count + i
            seed = draw_seed(self.config.seed, state.step, _MEANS, at)
            drawn.append(self.latents(some, torch.Generator().manual_seed(seed)))
        args = [to_device(torch.cat(each), self.procs.device) for each in zip(*drawn, strict=True)]
        # The mean of what each process found is what one would find by the whole batch.
        if means := self.move_means(state.generator, args):
            self.procs.mean_(means)

    @torch.enable_grad()
    def _phase(self, phase: Phase, state: TrainState, batch: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Compute the gradients of a phase, averaged and finite; return its statistics."""
        config = self.config
        sigma = blur_sigma(
            state.images, initial=config.blur_init_sigma, fade_kimg=config.blur_fade_kimg
        )
        if self.graphs is None:
            self.graphs = StepGraphs.of(config, state, self.procs, self.capture)
        if self.graphs.ready(phase) and sigma == 0 and len(batch) == 1:
            inputs, seed = self._inputs(phase, state, 0, *batch[0])
            found = self.graphs.run(phase, config, state, inputs, seed)
            if found is not None:
                return found
        if self._memory is None:
            self._memory = MemoryFallback.of(config, self.procs, self.release)
        found = self._memory.run(
            phase, config, state, lambda: self._ordinary(phase, state, batch, sigma)
        )
        if not state.scaler.is_enabled():
            # The scaler of fp16 needs to see an infinity, and leaves such a step out.
            finite_gradients(phase.parameters(state), self.procs.device)
        return found

    def _ordinary(
        self, phase: Phase, state: TrainState, batch: list[tuple[Tensor, Tensor]], sigma: float
    ) -> Tensor:
        """Run a phase operation by operation, a part of the batch at a time."""
        phase.optimiser(state).zero_grad(set_to_none=True)
        learned, count = phase.parameters(state), len(batch)
        for p in learned:
            p.requires_grad_(True)
        running = self._averaging(phase, state)
        found: list[Tensor] = []
        for i, (reals, labels) in enumerate(batch):
            inputs, _ = self._inputs(phase, state, i, reals, labels)
            with ExitStack() as stack:
                if i:
                    stack.enter_context(without_power_iteration(state.run_g, state.run_d))
                # Several processes average the sum of all parts.
                model = phase.model(running)
                stack.enter_context(local_gradients(model, wanted=i + 1 < count))
                found.append(phase.run(self.config, running, inputs, sigma, count) / count)
        for p in learned:
            p.requires_grad_(False)
        return torch.stack(found).sum(0)

    def _averaging(self, phase: Phase, state: TrainState) -> TrainState:
        """Return the state with a form of the phase's network that averages its gradients."""
        if self.procs.world == 1:
            return state
        if phase.number not in self._apart:
            # Its parameters require gradients at this moment, as they must.
            self._apart[phase.number] = self.procs.averaging(phase.model(state))
        return phase.with_model(state, self._apart[phase.number])

    def _inputs(
        self, phase: Phase, state: TrainState, part: int, reals: Tensor, real_labels: Tensor
    ) -> tuple[PartInputs, int]:
        """Draw the inputs of one part; return them and the seed of the networks' own draws."""
        config, device = self.config, self.procs.device
        _, count = parts_of(config, self.procs.world)
        at, number = self.procs.rank * count + part, phase.number
        generator = torch.Generator().manual_seed(draw_seed(config.seed, state.step, number, at))
        # Classes as often as the data has them.
        chosen = torch.randint(len(self.data), (len(reals),), generator=generator)
        labels = self.data.label(chosen)
        args = self.latents(labels, generator)
        seed = draw_seed(config.seed, state.step, number + 2, at)
        torch.manual_seed(seed)
        # On a CPU the noise comes from the same generator, and is drawn before the augmentation.
        ahead = device.type != "cpu" or self.capture is not None
        draw = draws_ahead(state.discriminator) if ahead else None
        size, drawn = (reals.shape[2], reals.shape[3]), [None, None]
        if draw is not None:
            passes = 1 if phase is GENERATOR else 2
            made = torch.cat([draw(len(reals), size) for _ in range(passes)])
            drawn = [*to_device(made, device).split(len(reals)), None]
        shown = slice(0, 0 if phase is GENERATOR else len(reals))
        inputs = PartInputs(
            args=map_tensors(lambda t: to_device(t, device), args),
            labels=to_device(labels, device),
            reals=reals[shown],
            real_labels=real_labels[shown],
            fake_draws=drawn[0],
            real_draws=drawn[1],
        )
        return inputs, seed
