"""The latents of generators: samplers and means that several codebases share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


def normal_latents(size: int) -> Callable[[int, torch.Generator], tuple[torch.Tensor]]:
    """A sampler of ``(z,)``: normal latents (n, size)."""

    def sample(n: int, generator: torch.Generator) -> tuple[torch.Tensor]:
        return (torch.randn(n, size, generator=generator, device=generator.device),)

    return sample


def latents_and_classes(
    z_dim: int, c_dim: int
) -> Callable[[int, torch.Generator], tuple[torch.Tensor, torch.Tensor]]:
    """A sampler of ``(z, c)``: normal latents (n, z_dim), uniform one-hot classes (n, c_dim).

    ``c`` is (n, 0) for an unconditional generator, as the official tools pass it.
    """

    def sample(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        device = generator.device
        z = torch.randn(n, z_dim, generator=generator, device=device)
        c = torch.zeros(n, c_dim, device=device)
        if c_dim:
            rows = torch.randint(c_dim, (n, 1), generator=generator, device=device)
            c.scatter_(1, rows, 1.0)
        return z, c

    return sample


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassConditional:
    """A sampler of ``(z, condition)``: latents, and a condition made from classes.

    Attributes:
        latents: ``latents(n, generator)`` draws (n, z_dim).
        condition: makes the second argument from classes (n,).
        classes: number of classes.
        only: the one class to draw; None: all of them, uniformly.
    """

    latents: Callable[[int, torch.Generator], Tensor]
    condition: Callable[[Tensor], Tensor]
    classes: int
    only: int | None = None

    def __call__(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the arguments of one call."""
        z = self.latents(n, generator)
        c = torch.randint(self.classes, (n,), generator=generator, device=generator.device)
        if self.only is not None:
            c = torch.full_like(c, self.only)
        return z, self.condition(c)

    def of_class(self, label: int) -> ClassConditional:
        """Return the sampler of one class."""
        return replace(self, only=label)


def moved_means(generator: nn.Module, args: Sequence[Any]) -> Sequence[Tensor]:
    """Move the mean of w by the latents and classes of one call; return it.

    Of StyleGAN2 and StyleGAN3; see :class:`dsconvert.adapter.Recipe`.
    """
    mapping: Any = generator.get_submodule("mapping")
    if mapping.w_avg_beta is None:
        return ()
    mapping(*args[:2], update_emas=True)
    return (mapping.w_avg,)
