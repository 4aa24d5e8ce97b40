"""The settings of a training run; :mod:`dsconvert.config.train` holds them."""

from __future__ import annotations

from dsconvert.config.train import TrainConfig

__all__ = ["TrainConfig"]
