"""Convolutions that stand alone, by the operators of :mod:`dsconvert.kernels` on a GPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dsconvert.kernels import depthwise, filters_of, is_pointwise, pointwise, takes
from dsconvert.model.editing import replace


def _by_operator(conv: Any, x: Tensor) -> Tensor | None:
    """Return the output of a pointwise or depthwise convolution; None: by torch, elsewhere."""
    if not takes(x.device) or x.dim() != 4:
        return None
    if is_pointwise(conv):
        return pointwise(x, conv.weight, conv.bias)
    filters = filters_of(conv)
    return None if filters is None else depthwise(x, filters, conv.bias)


class OperatorConv2d(nn.Conv2d):
    """The same convolution, with the same parameters and hooks."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """(N, I, H, W) to (N, O, H', W')."""
        made = _by_operator(self, input)
        return super().forward(input) if made is None else made


class OperatorConvTranspose2d(nn.ConvTranspose2d):
    """The same, transposed."""

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:  # noqa: A002
        """(N, I, H, W) to (N, O, 2 H, 2 W)."""
        made = None if output_size is not None else _by_operator(self, input)
        return super().forward(input, output_size) if made is None else made


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: OperatorConv2d,
    nn.ConvTranspose2d: OperatorConvTranspose2d,
}


def use_operators(model: nn.Module) -> None:
    """Let the pointwise and depthwise convolutions of a model use operators on a GPU, in place."""
    for conv in list(model.modules()):
        # Exactly these classes: what another one does is its own.
        kind = _KINDS.get(type(conv))
        if kind is not None and (is_pointwise(conv) or filters_of(conv) is not None):
            made = kind.__new__(kind)
            made.__dict__.update(conv.__dict__)
            replace(model, conv, made)
