"""Hinge losses, and the optional blur of the discriminator's input."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_FADE = 1.0
"""A blur that fades out over this many kimg or fewer is left out, as in the official code."""


def generator_loss(fake: Tensor) -> Tensor:
    """Return ``-E[D(G(z))]`` over all logits."""
    return -fake.float().mean()


def fake_loss(fake: Tensor) -> Tensor:
    """Return the discriminator's loss on generated images: ``E[max(0, 1 + D(G(z)))]``."""
    return F.relu(1 + fake.float()).mean()


def real_loss(real: Tensor) -> Tensor:
    """Return the discriminator's loss on real images: ``E[max(0, 1 - D(x))]``."""
    return F.relu(1 - real.float()).mean()


def blur_sigma(images: int, *, initial: float, fade_kimg: float) -> float:
    """Return sigma in pixels after ``images``: it falls to 0 over ``fade_kimg``.

    There is no blur if ``fade_kimg`` is :data:`LEAST_FADE` or less.
    """
    if fade_kimg <= LEAST_FADE:
        return 0.0
    return max(1 - images / (fade_kimg * 1000), 0.0) * initial


def blur(images: Tensor, sigma: float) -> Tensor:
    """Blur (N, C, H, W) by ``2^-((x / sigma)^2)``, 3 sigma wide, zero outside, as official."""
    radius = math.floor(3 * sigma)
    if radius < 1:
        return images
    taps = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    taps = (taps / sigma).square().neg().exp2()
    kernel = (taps / taps.sum()).to(images.dtype).expand(images.shape[1], 1, 1, -1)
    rows = F.conv2d(images, kernel, padding=(0, radius), groups=images.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), padding=(radius, 0), groups=images.shape[1])
