"""StyleGAN2 of the PyTorch lineage: StyleGAN2-ADA-PyTorch, StyleGAN3's and Projected GAN's cfg."""

from __future__ import annotations

from .adapter import ADAPTER, StyleGan2
from .network import Generator

__all__ = ["ADAPTER", "Generator", "StyleGan2"]
