"""The state of a training: networks, their moving average, optimisers, and counters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.config.train import TrainConfig
from dsconvert.forms import lean
from dsconvert.model.inputs import as_args, sampler_of
from dsconvert.train.schedule import with_rates
from dsconvert.util.memory_format import in_channels_last

Latents = Callable[[Tensor, torch.Generator], tuple[Any, ...]]
"""``latents(labels, generator)``: the generator's arguments for labels (n, classes), on the CPU."""
SUMS = ("loss_g", "loss_d", "score_fake", "score_real", "sign_fake", "sign_real")


@dataclass(kw_only=True)
class TrainState:
    """Everything that a step of the training changes.

    ``run_g`` and ``run_d`` are the forms of the networks that a step calls (compiled, say), with
    the same tensors.
    """

    generator: nn.Module
    discriminator: nn.Module
    ema: nn.Module
    opt_g: torch.optim.Adam
    opt_d: torch.optim.Adam
    scaler: torch.amp.GradScaler
    run_g: Any
    run_d: Any
    together: bool = False
    """Whether a pass computes all spectral norms of a network at once: fewer launches."""
    images: int = 0
    step: int = 0
    best: float | None = None
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))
    """Sums of the statistics since the last line, over ``steps`` steps."""
    steps: int = 0


Save = Callable[[TrainState, Path], None]
"""Writes a snapshot of the networks to a path, where it may replace a file."""


def new_state(
    generator: nn.Module,
    discriminator: nn.Module,
    config: TrainConfig,
    device: torch.device,
    *,
    ema: nn.Module | None = None,
) -> TrainState:
    """Put both networks on the device, in train mode, and make their optimisers.

    Args:
        generator: changed in place.
        discriminator: changed in place. Of a child ``feature_network`` nothing is trained.
        config: of the run.
        device: where to train.
        ema: the moving average to start from; None: a copy of ``generator``.

    Raises:
        DsconvertError: ``recompute="lean"``, and the generator can't be traced.
    """
    config = with_rates(config, generator)
    for model in (generator, discriminator):
        model.to(device).train().requires_grad_(False)
        if config.channels_last:
            in_channels_last(model)
    average = copy.deepcopy(generator) if ema is None else ema.to(device)
    if config.channels_last:  # of one layout, they are moved in a few launches
        in_channels_last(average)
    average.eval().requires_grad_(False)

    def adam(parameters: Any, lr: Any) -> torch.optim.Adam:
        # A fused step is a few launches for all parameters; on a CPU launches cost nothing.
        return torch.optim.Adam(
            parameters,
            lr=lr,
            betas=config.betas,
            eps=config.eps,
            fused=device.type == "cuda" or None,
        )

    state = TrainState(
        generator=generator,
        discriminator=discriminator,
        ema=average,
        opt_g=adam(generator.parameters(), config.lr_generator),
        opt_d=adam(_trained_parameters(discriminator), config.lr_discriminator),
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "fp16"),
        run_g=_compiled(generator, config),
        run_d=_compiled(discriminator, config),
        # On a CPU launches cost nothing; a compiled network and recomputed blocks need the hooks.
        together=device.type == "cuda" and not config.compile and config.recompute != "blocks",
    )
    if config.recompute == "lean":
        use_lean_form(state, config)
    return state


def _compiled(model: nn.Module, config: TrainConfig) -> Any:
    return torch.compile(model) if config.compile else model


def use_lean_form(state: TrainState, config: TrainConfig) -> None:
    """Let the steps call the generator's lean form from now on.

    Raises:
        DsconvertError: the generator can't be traced.
    """
    form = lean_form(state.generator, channels_last=config.channels_last)
    state.run_g = _compiled(form, config)


def changing_buffers(state: TrainState) -> list[Tensor]:
    """Return the buffers that a pass changes: statistics, and vectors of spectral norms."""
    frozen: Any = getattr(state.discriminator, "feature_network", None)
    fixed = {id(b) for b in frozen.buffers()} if isinstance(frozen, nn.Module) else set()
    found = (*state.generator.buffers(), *state.discriminator.buffers())
    return [b for b in found if id(b) not in fixed]


def lean_form(generator: nn.Module, *, channels_last: bool) -> nn.Module:
    """Return a form of ``generator`` that keeps less for the backward pass.

    The form has the very tensors of ``generator``: training the form trains ``generator``, which
    remains the module to save.

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


def _trained_parameters(discriminator: nn.Module) -> list[nn.Parameter]:
    frozen: Any = getattr(discriminator, "feature_network", None)
    fixed = {id(p) for p in frozen.parameters()} if isinstance(frozen, nn.Module) else set()
    return [p for p in discriminator.parameters() if id(p) not in fixed]


def latents_of(generator: nn.Module) -> Latents:
    """Return a sampler of the adapter's latents, with the data's classes.

    Raises:
        AdapterError: no installed adapter knows the generator.
    """
    sampler = sampler_of(generator)

    def draw(labels: Tensor, random: torch.Generator) -> tuple[Any, ...]:
        args = as_args(sampler(len(labels), random))
        if len(args) == 2 and isinstance(args[1], Tensor) and args[1].dim() == 2:
            return args[0], labels if args[1].shape[1] else args[1]
        return args

    return draw
