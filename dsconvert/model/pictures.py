"""A generator as a module that returns its picture alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dsconvert.adapter import image_tensor


class FromUnit(nn.Module):
    """A generator of images in [0, 1], which are brought to [-1, 1]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any) -> Tensor:
        """Return the image alone."""
        return image_tensor(self.model(*args)) * 2 - 1
