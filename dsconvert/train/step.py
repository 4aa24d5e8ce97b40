"""One step: the generator's phase, the discriminator's, and the moving average.

The order of things, the losses and the optimisers are the official training loop's. Unlike there,
every draw of a step (latents, classes, noise, augmentation) follows from the seed, the step, the
phase and the part of the batch alone. So a step gives the same numbers whether the run was resumed
before it, and whether its parts are taken by one process or by several.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsconvert.adapter import image_tensor
from dsconvert.data.images import ImageSet
from dsconvert.data.stream import to_range
from dsconvert.errors import UsageError
from dsconvert.forms import lean
from dsconvert.train.config import TrainConfig
from dsconvert.train.ema import ema_beta, update_ema
from dsconvert.train.losses import blur, blur_sigma, fake_loss, generator_loss, real_loss
from dsconvert.train.recompute import blocks, recomputing, still
from dsconvert.util.memory_format import in_channels_last
from dsconvert.util.processes import Processes

Latents = Callable[[Tensor, torch.Generator], tuple[Any, ...]]
"""``latents(labels, generator)``: the generator's arguments for labels (n, classes), on the CPU."""
_AMP = {"fp16": torch.float16, "bf16": torch.bfloat16}
SUMS = ("loss_g", "loss_d", "score_fake", "score_real", "sign_fake", "sign_real")


@dataclass(kw_only=True)
class Networks:
    """What a run changes."""

    generator: nn.Module
    discriminator: nn.Module
    ema: nn.Module
    opt_g: torch.optim.Adam
    opt_d: torch.optim.Adam
    scaler: torch.amp.GradScaler
    run_g: Any
    run_d: Any
    images: int = 0
    step: int = 0
    best: float | None = None
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))
    """Of the statistics since the last line, over ``steps`` steps."""
    steps: int = 0


def networks(
    generator: nn.Module,
    discriminator: nn.Module,
    config: TrainConfig,
    device: torch.device,
    *,
    ema: nn.Module | None = None,
) -> Networks:
    """Put both networks on the device, in train mode, with their optimisers.

    Raises:
        DsconvertError: ``recompute="lean"``, and the generator can't be traced.
    """
    for model in (generator, discriminator):
        model.to(device).train().requires_grad_(False)
        if config.channels_last:
            in_channels_last(model)
    average = copy.deepcopy(generator) if ema is None else ema.to(device)
    average.eval().requires_grad_(False)

    def adam(parameters: Any, lr: float) -> torch.optim.Adam:
        return torch.optim.Adam(parameters, lr=lr, betas=config.betas, eps=config.eps)

    compiled = torch.compile if config.compile else (lambda model: model)
    form = lean_form(generator, channels_last=config.channels_last) \
        if config.recompute == "lean" else generator  # fmt: skip
    return Networks(
        generator=generator,
        discriminator=discriminator,
        ema=average,
        opt_g=adam(generator.parameters(), config.lr_generator),
        opt_d=adam(_learned(discriminator), config.lr_discriminator),
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        run_g=compiled(form),
        run_d=compiled(discriminator),
    )


def lean_form(generator: nn.Module, *, channels_last: bool) -> nn.Module:
    """A form of ``generator`` that keeps less for the backward pass, on the very same tensors.

    What is trained through it is trained in ``generator``, which stays what is saved.

    Raises:
        DsconvertError: the generator can't be traced.
    """
    form = lean(generator, channels_last=channels_last).train()
    own = dict(form.named_modules())
    for name, module in generator.named_modules():
        twin = own.get(name)
        if twin is None:
            continue
        for mine, theirs in (
            (module._parameters, twin._parameters),
            (module._buffers, twin._buffers),
        ):
            for key in theirs.keys() & mine.keys():
                theirs[key] = mine[key]  # pyright: ignore[reportArgumentType]
    return form


def _learned(discriminator: nn.Module) -> list[nn.Parameter]:
    frozen: Any = getattr(discriminator, "feature_network", None)
    fixed = {id(p) for p in frozen.parameters()} if isinstance(frozen, nn.Module) else set()
    return [p for p in discriminator.parameters() if id(p) not in fixed]


def draw_seed(seed: int, step: int, phase: int, part: int) -> int:
    """A seed of 63 bits for one part of one phase of one step."""
    state = np.random.SeedSequence([seed, step, phase, part]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def parts_of(config: TrainConfig, world: int) -> tuple[int, int]:
    """Images of a part, and parts of a step in each process.

    Raises:
        UsageError: the batch can't be cut so.
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
    """Everything that stays the same from step to step."""

    config: TrainConfig
    data: ImageSet
    latents: Latents
    procs: Processes

    def run(self, nets: Networks, images: Tensor, labels: Tensor) -> Tensor:
        """One step over this process's share of a batch.

        Args:
            nets: changed in place.
            images: uint8 (n, C, R, R).
            labels: float32 (n, classes).

        Returns:
            the sums of :data:`SUMS`, means over the batch, on the device.
        """
        config, device = self.config, self.procs.device
        part, count = parts_of(config, self.procs.world)
        sigma = blur_sigma(
            nets.images, initial=config.blur_init_sigma, fade_kimg=config.blur_fade_kimg
        )
        sums = torch.zeros(len(SUMS), device=device)

        nets.opt_g.zero_grad(set_to_none=True)
        nets.generator.requires_grad_(True)
        for i in range(count):
            args, wanted = self._draw(nets, 0, i, part)
            with ExitStack() as stack:
                self._enter(stack, nets, first=i == 0)
                if config.recompute == "blocks":
                    stack.enter_context(recomputing(blocks(nets.generator)))
                logits = self._judge(nets, image_tensor(nets.run_g(*args)), wanted, sigma)
                loss = generator_loss(logits)
                # Inside: a recomputed block runs again during the backward pass.
                nets.scaler.scale(loss / count).backward()
            sums[0] += loss.detach() / count
        nets.generator.requires_grad_(False)
        self._update(nets, nets.opt_g)

        nets.opt_d.zero_grad(set_to_none=True)
        learned = [p for group in nets.opt_d.param_groups for p in group["params"]]
        for p in learned:
            p.requires_grad_(True)
        for i, (reals, real_c) in enumerate(
            zip(images.split(part), labels.to(device).split(part), strict=True)
        ):
            args, wanted = self._draw(nets, 1, i, part)
            with ExitStack() as stack:
                self._enter(stack, nets, first=i == 0)
                with torch.no_grad():
                    made = image_tensor(nets.run_g(*args))
                fake = self._judge(nets, made, wanted, sigma)
                loss_fake = fake_loss(fake)
                nets.scaler.scale(loss_fake / count).backward()
                shown = to_range(reals, device)
                if config.channels_last:
                    shown = shown.contiguous(memory_format=torch.channels_last)
                real = self._judge(nets, shown, real_c, sigma)
                loss_real = real_loss(real)
                nets.scaler.scale(loss_real / count).backward()
            found = (
                loss_fake + loss_real, fake.mean(), real.mean(),
                fake.sign().mean(), real.sign().mean(),
            )  # fmt: skip
            sums[1:] += torch.stack([f.detach().float() for f in found]) / count
        for p in learned:
            p.requires_grad_(False)
        self._update(nets, nets.opt_d)
        nets.scaler.update()

        beta = ema_beta(
            batch=config.batch,
            seen=nets.images,
            half_life=config.ema_images,
            rampup=config.ema_rampup,
        )
        update_ema(nets.ema, nets.generator, beta)
        nets.images += config.batch
        nets.step += 1
        self.procs.mean_([sums])
        return sums

    def _enter(self, stack: ExitStack, nets: Networks, *, first: bool) -> None:
        if not first:
            stack.enter_context(still(nets.run_g, nets.run_d))
        dtype = _AMP.get(self.config.precision)
        if dtype is not None:
            stack.enter_context(torch.autocast(self.procs.device.type, dtype))

    def _draw(
        self, nets: Networks, phase: int, part: int, size: int
    ) -> tuple[tuple[Any, ...], Tensor]:
        """Latents and classes of one part; and seeds what the networks draw by themselves."""
        device = self.procs.device
        _, count = parts_of(self.config, self.procs.world)
        at = self.procs.rank * count + part
        seed = draw_seed(self.config.seed, nets.step, phase, at)
        generator = torch.Generator().manual_seed(seed)
        # Classes as often as the data has them.
        labels = self.data.label(torch.randint(len(self.data), (size,), generator=generator))
        args = self.latents(labels, generator)
        torch.manual_seed(draw_seed(self.config.seed, nets.step, phase + 2, at))
        moved = tuple(a.to(device) if isinstance(a, Tensor) else a for a in args)
        return moved, labels.to(device)

    def _judge(self, nets: Networks, images: Tensor, labels: Tensor, sigma: float) -> Tensor:
        return nets.run_d(blur(images, sigma) if sigma > 0 else images, labels)

    def _update(self, nets: Networks, optimiser: torch.optim.Adam) -> None:
        grads = [
            p.grad for group in optimiser.param_groups for p in group["params"]
            if p.grad is not None
        ]  # fmt: skip
        self.procs.mean_(grads)
        if not nets.scaler.is_enabled():
            # As official: a stray infinity in one gradient costs one step, not the run. (fp16's
            # scaler wants to see it, and leaves such a step out.)
            for grad in grads:
                torch.nan_to_num(grad, nan=0.0, posinf=1e5, neginf=-1e5, out=grad)
        nets.scaler.step(optimiser)
