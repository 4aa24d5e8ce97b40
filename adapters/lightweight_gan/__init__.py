"""Generators of lucidrains' lightweight-gan (``model_N.pt`` files)."""

from __future__ import annotations

from .adapter import ADAPTER, LightweightGan
from .architecture import Generator

__all__ = ["ADAPTER", "Generator", "LightweightGan"]
