"""A generator as a module that returns its picture in [-1, 1]."""

from __future__ import annotations

from typing import Any

from torch import nn

from dsconvert.adapter import image_tensor
from dsconvert.model.inputs import map_tensors


class FromUnit(nn.Module):
    """A generator of images in [0, 1], which are brought to [-1, 1].

    Args:
        model: the generator.
        whole: return all that the model returns; False: the image alone.
    """

    def __init__(self, model: nn.Module, *, whole: bool = False) -> None:
        super().__init__()
        self.model, self._whole = model, whole

    def forward(self, *args: Any) -> Any:
        """Return the image (N, C, H, W), or the model's return value with the image replaced."""
        output = self.model(*args)
        image = image_tensor(output)
        shown = image * 2 - 1
        if not self._whole:
            return shown
        return map_tensors(lambda t: shown if t is image else t, output)
