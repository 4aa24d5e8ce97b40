"""One step of training: the generator's phase, the discriminator's, and the moving average.

The order of the phases, the losses and the optimisers are those of the official training loop.
Unlike there, every draw of a step (latents, classes, noise, augmentation) follows from the seed,
the step, the phase and the part of the batch alone. So a step gives the same numbers after a
resumption, and whether one process takes its parts or several do.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsconvert.adapter import image_tensor
from dsconvert.config.train import TrainConfig
from dsconvert.data.images import ImageSet
from dsconvert.data.stream import to_range
from dsconvert.errors import UsageError
from dsconvert.train.ema import ema_beta, update_ema
from dsconvert.train.losses import blur, blur_sigma, fake_loss, generator_loss, real_loss
from dsconvert.train.recompute import blocks, recomputing, without_power_iteration
from dsconvert.train.state import SUMS, Latents, TrainState
from dsconvert.util.processes import Processes

_AMP = {"fp16": torch.float16, "bf16": torch.bfloat16}
_GENERATOR, _DISCRIMINATOR = 0, 1
"""Phases of a step, as they enter its seeds."""


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


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """Runs steps; it holds everything that is the same in each of them."""

    config: TrainConfig
    data: ImageSet
    latents: Latents
    procs: Processes

    def run(self, state: TrainState, images: Tensor, labels: Tensor) -> Tensor:
        """Run one step over this process's share of a batch.

        Args:
            state: changed in place.
            images: uint8 (n, C, R, R).
            labels: float32 (n, classes).

        Returns:
            the statistics of :data:`SUMS`, means over the batch, on the device.
        """
        config, device = self.config, self.procs.device
        part, count = parts_of(config, self.procs.world)
        sigma = blur_sigma(
            state.images, initial=config.blur_init_sigma, fade_kimg=config.blur_fade_kimg
        )
        sums = torch.zeros(len(SUMS), device=device)

        state.opt_g.zero_grad(set_to_none=True)
        state.generator.requires_grad_(True)
        for i in range(count):
            args, wanted = self._draw(state, _GENERATOR, i, part)
            with ExitStack() as stack:
                self._enter(stack, state, first=i == 0)
                if config.recompute == "blocks":
                    stack.enter_context(recomputing(blocks(state.generator)))
                logits = self._logits(state, image_tensor(state.run_g(*args)), wanted, sigma)
                loss = generator_loss(logits)
                # Inside the context, because a recomputed block runs again in the backward pass.
                state.scaler.scale(loss / count).backward()
            sums[0] += loss.detach() / count
        state.generator.requires_grad_(False)
        self._update(state, state.opt_g)

        state.opt_d.zero_grad(set_to_none=True)
        learned = [p for group in state.opt_d.param_groups for p in group["params"]]
        for p in learned:
            p.requires_grad_(True)
        for i, (reals, real_c) in enumerate(
            zip(images.split(part), labels.to(device).split(part), strict=True)
        ):
            args, wanted = self._draw(state, _DISCRIMINATOR, i, part)
            with ExitStack() as stack:
                self._enter(stack, state, first=i == 0)
                with torch.no_grad():
                    made = image_tensor(state.run_g(*args))
                fake = self._logits(state, made, wanted, sigma)
                loss_fake = fake_loss(fake)
                state.scaler.scale(loss_fake / count).backward()
                shown = to_range(reals, device)
                if config.channels_last:
                    shown = shown.contiguous(memory_format=torch.channels_last)
                real = self._logits(state, shown, real_c, sigma)
                loss_real = real_loss(real)
                state.scaler.scale(loss_real / count).backward()
            found = (
                loss_fake + loss_real, fake.mean(), real.mean(),
                fake.sign().mean(), real.sign().mean(),
            )  # fmt: skip
            sums[1:] += torch.stack([f.detach().float() for f in found]) / count
        for p in learned:
            p.requires_grad_(False)
        self._update(state, state.opt_d)
        state.scaler.update()

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

    def _enter(self, stack: ExitStack, state: TrainState, *, first: bool) -> None:
        if not first:
            stack.enter_context(without_power_iteration(state.run_g, state.run_d))
        dtype = _AMP.get(self.config.precision)
        if dtype is not None:
            stack.enter_context(torch.autocast(self.procs.device.type, dtype))

    def _draw(
        self, state: TrainState, phase: int, part: int, size: int
    ) -> tuple[tuple[Any, ...], Tensor]:
        """Draw latents and classes of one part; seed the draws of the networks themselves."""
        device = self.procs.device
        _, count = parts_of(self.config, self.procs.world)
        at = self.procs.rank * count + part
        seed = draw_seed(self.config.seed, state.step, phase, at)
        generator = torch.Generator().manual_seed(seed)
        # Classes as often as the data has them.
        labels = self.data.label(torch.randint(len(self.data), (size,), generator=generator))
        args = self.latents(labels, generator)
        torch.manual_seed(draw_seed(self.config.seed, state.step, phase + 2, at))
        moved = tuple(a.to(device) if isinstance(a, Tensor) else a for a in args)
        return moved, labels.to(device)

    def _logits(self, state: TrainState, images: Tensor, labels: Tensor, sigma: float) -> Tensor:
        return state.run_d(blur(images, sigma) if sigma > 0 else images, labels)

    def _update(self, state: TrainState, optimiser: torch.optim.Adam) -> None:
        grads = [
            p.grad for group in optimiser.param_groups for p in group["params"]
            if p.grad is not None
        ]  # fmt: skip
        self.procs.mean_(grads)
        if not state.scaler.is_enabled():
            # As official: an infinity in one gradient must not end the run. (The scaler of fp16
            # needs to see it, and leaves such a step out.)
            for grad in grads:
                torch.nan_to_num(grad, nan=0.0, posinf=1e5, neginf=-1e5, out=grad)
        state.scaler.step(optimiser)
