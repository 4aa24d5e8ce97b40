"""Official Projected GAN: architecture, names, example inputs."""

from __future__ import annotations

from dsconvert_adapters.projected_gan.adapter import ADAPTER, ProjectedGan
from dsconvert_adapters.projected_gan.architecture import Generator

__all__ = ["ADAPTER", "Generator", "ProjectedGan"]
