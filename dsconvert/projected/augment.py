"""Differentiable augmentation of the discriminator's input, both real and generated.

Zhao et al., "Differentiable Augmentation for Data-Efficient GAN Training" (NeurIPS 2020), with the
policies and ranges of Projected GAN: colour, translation, cutout. All draws are from torch's CPU
generator, so that one seed gives the same augmentation on every device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dsconvert.errors import UsageError

SHIFT = 0.125
"""Largest translation, as a share of the image's side."""
HOLE = 0.2
"""Side of the cutout, as a share of the image's side."""


def _uniform(x: Tensor, low: float, high: float) -> Tensor:
    draws = torch.rand(len(x), 1, 1, 1) * (high - low) + low
    return draws.to(x.device, x.dtype)


def color(x: Tensor) -> Tensor:
    """Change brightness (+-0.5), saturation (0 to 2) and contrast (0.5 to 1.5) of each image."""
    x = x + _uniform(x, -0.5, 0.5)
    x = torch.lerp(x.mean(dim=1, keepdim=True), x, _uniform(x, 0, 2))
    return torch.lerp(x.mean(dim=(1, 2, 3), keepdim=True), x, _uniform(x, 0.5, 1.5))


def translation(x: Tensor) -> Tensor:
    """Shift each image by up to an eighth of its side; the new border is zero (mid-grey)."""
    limits = [int(side * SHIFT + 0.5) for side in x.shape[2:]]
    down, right = (torch.randint(-m, m + 1, (len(x),)).tolist() for m in limits)
    # A negative padding crops: one operation for each image, and one for its gradient.
    moved = [
        F.pad(image, (dx, -dx, dy, -dy))
        for image, dy, dx in zip(x.unbind(0), down, right, strict=True)
    ]
    return torch.stack(moved)


def cutout(x: Tensor) -> Tensor:
    """Zero a square of a fifth of the side, whose centre may lie on the border."""
    keep = torch.zeros(len(x), 1, *x.shape[2:], dtype=torch.bool)
    sides: list[Tensor] = []
    for side in x.shape[2:]:
        size = int(side * HOLE + 0.5)
        first = torch.randint(0, side + 1 - size % 2, (len(x), 1)) - size // 2
        at = torch.arange(side)[None]
        sides.append((at < first) | (at >= first + size))
    keep = (sides[0][:, :, None] | sides[1][:, None, :])[:, None]
    return x * keep.to(x.device, x.dtype)


POLICIES: dict[str, Callable[[Tensor], Tensor]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
}


def diffaugment(x: Tensor, policies: tuple[str, ...] = tuple(POLICIES)) -> Tensor:
    """Apply ``policies`` in order to images (N, C, H, W).

    Raises:
        UsageError: a policy is unknown.
    """
    for name in policies:
        if name not in POLICIES:
            raise UsageError(f"no augmentation is called {name!r}; choose {', '.join(POLICIES)}.")
        x = POLICIES[name](x)
    return x
