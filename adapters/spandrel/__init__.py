"""Adapter for the architectures that the package ``spandrel`` opens: super-resolution and others.

The package is optional. Files are read by dsconvert; spandrel gets a state dict and builds the
architecture from it.
"""

from __future__ import annotations

from .adapter import ADAPTER

__all__ = ["ADAPTER"]
