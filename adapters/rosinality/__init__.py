"""Generators of rosinality/stylegan2-pytorch (``.pt`` files with ``g_ema``)."""

from __future__ import annotations

from .adapter import ADAPTER, Rosinality
from .architecture import Generator
from .modulated import adopt

__all__ = ["ADAPTER", "Generator", "Rosinality", "adopt"]
