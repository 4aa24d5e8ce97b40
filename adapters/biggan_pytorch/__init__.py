"""Generators of ajbrock/BigGAN-PyTorch (``G_ema.pth``, ``G.pth``), BigGAN and BigGAN-deep."""

from __future__ import annotations

from .adapter import ADAPTER, BigganPytorch
from .architecture import Generator

__all__ = ["ADAPTER", "BigganPytorch", "Generator"]
