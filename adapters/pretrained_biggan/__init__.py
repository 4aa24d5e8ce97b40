"""Generators of PyPI's ``pytorch-pretrained-biggan`` (``pytorch_model.bin``, ``config.json``)."""

from __future__ import annotations

from .adapter import ADAPTER, PretrainedBiggan
from .architecture import BigGAN

__all__ = ["ADAPTER", "BigGAN", "PretrainedBiggan"]
