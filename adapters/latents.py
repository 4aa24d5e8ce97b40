"""What generators are called with: the samplers that several codebases share."""

from __future__ import annotations

from collections.abc import Callable

import torch


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
