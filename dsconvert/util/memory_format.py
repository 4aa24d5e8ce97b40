"""The memory layout of a model's weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def in_channels_last(model: Model) -> Model:
    """Put all four-dimensional weights into ``channels_last``, in place; return ``model``.

    ``model.to(memory_format=torch.channels_last)`` fails where a weight has five dimensions, as in
    a modulated convolution (1, O, I, kh, kw) or a ``Conv3d``.
    """

    def laid_out(t: Tensor) -> Tensor:
        return t.to(memory_format=torch.channels_last) if t.dim() == 4 else t

    return model._apply(laid_out)  # pyright: ignore[reportPrivateUsage]
