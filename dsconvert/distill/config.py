"""The settings of a distillation; :mod:`dsconvert.config.distill` holds them."""

from __future__ import annotations

from dsconvert.config.distill import WARMUP_SHARE, DistillConfig

__all__ = ["WARMUP_SHARE", "DistillConfig"]
