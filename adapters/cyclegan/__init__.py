"""Generators of pytorch-CycleGAN-and-pix2pix and contrastive-unpaired-translation (CUT)."""

from __future__ import annotations

from .adapter import ADAPTER, CycleGan
from .architecture import ResnetGenerator, UnetGenerator

__all__ = ["ADAPTER", "CycleGan", "ResnetGenerator", "UnetGenerator"]
