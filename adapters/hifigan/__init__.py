"""Generators of jik876/hifi-gan (``g_02500000``, ``generator_v1``, with ``config.json``)."""

from __future__ import annotations

from .adapter import ADAPTER, Hifigan
from .architecture import Generator

__all__ = ["ADAPTER", "Generator", "Hifigan"]
