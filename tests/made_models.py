"""What the fixtures and the tests of checkpoints both make."""

from __future__ import annotations

import copy

import torch
from dsconvert_adapters.projected_gan import Generator
from dsconvert_adapters.projected_gan.architecture import settle_spectral_norm
from torch import nn


def moved(model: nn.Module, seed: int = 3) -> nn.Module:
    """Random weights of a size that makes pictures, statistics and noise off their defaults."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
            elif type(module).__name__ in ("NoiseInjection", "Noise"):
                module.weight.fill_(0.2)
        settle_spectral_norm(model)
    return model.eval()


def fastgan_content(first: nn.Module, second: nn.Module) -> dict[str, object]:
    """What the official ``train.py`` saves as ``all_N.pth``; ``second`` is the average."""
    return {
        "g": first.state_dict(),
        "d": {"down.weight": torch.ones(2)},
        "g_ema": [p.data for p in second.parameters()],
        "opt_g": torch.optim.Adam(first.parameters()).state_dict(),
        "opt_d": {},
    }


def drifted(model: nn.Module, seed: int = 7) -> nn.Module:
    """A copy with parameters a little off and the same statistics, as a moving average has."""
    result = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
    return result


def moved_generator(**config: object) -> Generator:
    """A small official-style generator with nothing left at its initial value.

    Untrained; noise weights and batch-norm statistics are moved so that a converter which forgets
    them is found out.
    """
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = Generator.from_config(**{"resolution": 128, "ngf": 4, "z_dim": 16, **config})
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
            elif type(module).__name__ == "NoiseInjection":
                module.weight.data.fill_(0.2)
    return made
