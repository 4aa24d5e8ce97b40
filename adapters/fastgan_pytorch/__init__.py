"""Generators of odegeasslbc/FastGAN-pytorch (``.pth`` files with ``g`` and ``g_ema``)."""

from __future__ import annotations

from .adapter import ADAPTER, FastganPytorch
from .architecture import Generator

__all__ = ["ADAPTER", "FastganPytorch", "Generator"]
