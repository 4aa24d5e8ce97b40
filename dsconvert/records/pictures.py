"""The pictures that a generator reads."""

from __future__ import annotations

from dataclasses import dataclass

from dsconvert.config.choices import Values

DEFAULT_CROP = 64
"""Side of a crop in pixels, where neither the model nor the user names one."""


@dataclass(frozen=True, kw_only=True)
class PictureSpec:
    """The pictures that a generator reads: (N, channels, H, W).

    Attributes:
        channels: 1 (grey), 3 (RGB) or 4 (with alpha).
        values: the range of the values that the model reads and writes; None: unknown.
        size: the usual side of a crop in pixels.
        least: the smallest side that the model takes.
        multiple: a side is a multiple of this.
    """

    channels: int
    values: Values | None
    size: int = DEFAULT_CROP
    least: int = 1
    multiple: int = 1
