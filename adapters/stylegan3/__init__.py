"""StyleGAN3 (``-t`` and ``-r``) and StyleGAN-XL, in ``torch_utils.persistence`` files."""

from __future__ import annotations

from .adapter import ADAPTER, StyleGan3
from .architecture import Generator

__all__ = ["ADAPTER", "Generator", "StyleGan3"]
