"""StyleGAN2 of the PyTorch lineage: StyleGAN2-ADA-PyTorch, StyleGAN3's and Projected GAN's cfg."""

from __future__ import annotations

import sys

from . import architecture
from .adapter import ADAPTER, StyleGan2
from .architecture import Generator

# Earlier versions pickled modules under this name.
sys.modules[f"{__name__}.network"] = architecture

__all__ = ["ADAPTER", "Generator", "StyleGan2"]
