"""The two passes of a step over a part of the batch: forward, loss and backward.

A pass reads tensors and changes gradients and buffers. All draws on the CPU are made before, so
that a CUDA graph can hold a pass.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import image_tensor
from dsconvert.config.train import TrainConfig
from dsconvert.data.stream import to_range
from dsconvert.model.inputs import map_tensors, tensors_of
from dsconvert.train.losses import blur, fake_loss, generator_loss, real_loss
from dsconvert.train.recompute import blocks, recomputing
from dsconvert.train.spectral_norms import normalised_together
from dsconvert.train.state import TrainState
from dsconvert.util.autocast import is_mixed

AMP = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class PartInputs:
    """Everything that a pass over one part of a batch reads, beside the networks."""

    args: tuple[Any, ...]
    """Of the generator."""
    labels: Tensor
    """Of the generated images, (n, classes)."""
    reals: Tensor
    """uint8 (n, C, R, R)."""
    real_labels: Tensor
    """(n, classes)."""
    fake_draws: Tensor | None = None
    """The augmentation of the generated images; None: the discriminator draws it itself."""
    real_draws: Tensor | None = None
    """Of the real ones."""

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        own = (getattr(self, f.name) for f in fields(self) if f.name != "args")
        return [*tensors_of(self.args), *(t for t in own if isinstance(t, Tensor))]

    @property
    def plain(self) -> tuple[Any, ...]:
        """The arguments of the generator without their tensors."""
        return map_tensors(lambda _: None, self.args)

    def clone(self) -> PartInputs:
        """Return the same with tensors of its own."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "args"}
        return replace(
            self,
            args=map_tensors(lambda t: t.clone(), self.args),
            **{k: None if t is None else t.clone() for k, t in own.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One of the two phases of a step.

    Attributes:
        number: as it enters the seeds of the step.
        run: ``run(config, state, inputs, sigma, count)`` runs a pass over one of ``count`` parts of
            the batch, adds gradients, and returns statistics of the part.
    """

    number: int
    run: Callable[[TrainConfig, TrainState, PartInputs, float, int], Tensor]

    def optimiser(self, state: TrainState) -> torch.optim.Adam:
        """Return the optimiser of the network that the phase trains."""
        return state.opt_g if self.number == 0 else state.opt_d

    def model(self, state: TrainState) -> Any:
        """Return the form of the network that the phase trains."""
        return state.run_g if self.number == 0 else state.run_d

    def with_model(self, state: TrainState, model: Any) -> TrainState:
        """Return a state with another form of that network."""
        return replace(state, **{"run_g" if self.number == 0 else "run_d": model})

    def parameters(self, state: TrainState) -> list[nn.Parameter]:
        """Return the parameters that the phase trains."""
        return [p for g in self.optimiser(state).param_groups for p in g["params"]]


def local_gradients(model: Any, *, wanted: bool = True) -> AbstractContextManager[Any]:
    """Return a context in which several processes do not average the gradients of ``model``.

    It holds the forward pass, too. Gradients add up, and the next pass outside averages their sum.
    """
    apart = isinstance(model, nn.parallel.DistributedDataParallel)
    return model.no_sync() if wanted and apart else nullcontext()


def _called(state: TrainState, model: Any, *args: Any) -> Any:
    """Call a network; all its spectral norms are computed together where that is faster."""
    # DistributedDataParallel sends buffers within its call.
    alone = not isinstance(model, nn.parallel.DistributedDataParallel)
    with normalised_together(model) if state.together and alone else nullcontext():
        return model(*args)


def _enter_amp(stack: ExitStack, config: TrainConfig, part: PartInputs) -> None:
    dtype = AMP.get(config.precision)
    if dtype is not None:
        stack.enter_context(torch.autocast(part.reals.device.type, dtype))


def _backward(state: TrainState, loss: Tensor) -> None:
    """Add the gradients of a loss, with autocast off.

    Each operation's backward pass has the type of its forward pass by itself. With autocast on, it
    would also round the formulas of gradients in float32, such as those of spectral norms.
    """
    kind = loss.device.type
    with torch.autocast(kind, enabled=False) if is_mixed(kind) else nullcontext():
        state.scaler.scale(loss).backward()


def _logits(
    state: TrainState, images: Tensor, labels: Tensor, draws: Tensor | None, sigma: float
) -> Tensor:
    shown = blur(images, sigma) if sigma > 0 else images
    args = (shown, labels) if draws is None else (shown, labels, draws)
    return _called(state, state.run_d, *args)


def _generator_pass(
    config: TrainConfig, state: TrainState, part: PartInputs, sigma: float, count: int
) -> Tensor:
    with ExitStack() as stack:
        _enter_amp(stack, config, part)
        if config.recompute == "blocks":
            stack.enter_context(recomputing(blocks(state.generator)))
        made = image_tensor(_called(state, state.run_g, *part.args))
        loss = generator_loss(_logits(state, made, part.labels, part.fake_draws, sigma))
        # Inside the context, because a recomputed block runs again in the backward pass.
        _backward(state, loss / count)
    return loss.detach()[None]


def _discriminator_pass(
    config: TrainConfig, state: TrainState, part: PartInputs, sigma: float, count: int
) -> Tensor:
    with ExitStack() as stack:
        _enter_amp(stack, config, part)
        with torch.no_grad():
            made = image_tensor(_called(state, state.run_g, *part.args))
        with local_gradients(state.run_d):
            fake = _logits(state, made, part.labels, part.fake_draws, sigma)
            loss_fake = fake_loss(fake)
            _backward(state, loss_fake / count)
        shown = to_range(part.reals, part.reals.device)
        if config.channels_last:
            shown = shown.contiguous(memory_format=torch.channels_last)
        real = _logits(state, shown, part.real_labels, part.real_draws, sigma)
        loss_real = real_loss(real)
        _backward(state, loss_real / count)
    found = (
        loss_fake + loss_real, fake.mean(), real.mean(), fake.sign().mean(), real.sign().mean(),
    )  # fmt: skip
    return torch.stack([f.detach().float() for f in found])


GENERATOR = Phase(number=0, run=_generator_pass)
DISCRIMINATOR = Phase(number=1, run=_discriminator_pass)
