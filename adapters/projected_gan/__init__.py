"""Official Projected GAN: architecture, names, example inputs."""

from __future__ import annotations

from .adapter import ADAPTER, ProjectedGan
from .architecture import Generator

__all__ = ["ADAPTER", "Generator", "ProjectedGan"]
