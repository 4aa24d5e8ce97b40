"""Text as a person types it, read into the values of settings.

Every function raises ``ValueError`` with a text that names the bad part.
"""

from __future__ import annotations

import math
from typing import Literal

SEED_LIMIT = 2**32
"""The legacy generator of NumPy, which draws the official latents, takes seeds below this."""
_LARGEST_RANGE = 1_000_000


def _digits(text: str) -> bool:
    """Return whether a text is of the digits 0 to 9 alone; ``isdigit`` accepts "²", too."""
    return text.isascii() and text.isdigit()


def whole(text: str) -> int:
    """Read a whole number."""
    if not _digits(text[1:] if text[:1] in ("-", "+") else text):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def number(text: str) -> float:
    """Read a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a number")
    return value


def width(text: str) -> float | Literal["auto"]:
    """Read a share of channels, or ``auto``."""
    if text == "auto":
        return "auto"
    value = number(text)
    if not 0 < value <= 1:
        raise ValueError(f"{text} is no share above 0, up to 1 (all channels), and not auto")
    return value


def seed(text: str) -> int:
    """Read one seed."""
    value = whole(text)
    if value < 0:
        raise ValueError(f"{text!r} is not 0 or more")
    if value >= SEED_LIMIT:
        raise ValueError(f"{value} is too large for a seed (below 2^32)")
    return value


def seeds(text: str) -> tuple[int, ...]:
    """Read ``"0-3,7"`` as ``(0, 1, 2, 3, 7)``."""
    found: list[int] = []
    for piece in text.split(","):
        low, dash, high = piece.strip().partition("-")
        if not _digits(low) or (dash and not _digits(high)):
            raise ValueError(f"{text!r} is not like 0-3,7")
        first, last = int(low), int(high) if dash else int(low)
        if last < first or last - first >= _LARGEST_RANGE:
            raise ValueError(f"{piece.strip()!r} is an empty or huge range")
        if last >= SEED_LIMIT:
            raise ValueError(f"{last} is too large for a seed (below 2^32)")
        found.extend(range(first, last + 1))
    return tuple(found)


def ranks(text: str) -> tuple[int, ...]:
    """Read ``"1-9"`` as the ranks it names."""
    values = seeds(text)
    if min(values) < 1 or max(values) > 1000:
        raise ValueError("ranks begin at 1, and k^2 is exact (9 for 3x3)")
    return values


def shape(text: str) -> tuple[int, ...]:
    """Read ``"3,64,64"`` as ``(3, 64, 64)``."""
    sizes = text.split(",")
    if not all(_digits(s.strip()) and int(s) for s in sizes):
        raise ValueError(f"{text!r} is not like 256 or 3,64,64")
    return tuple(int(s) for s in sizes)


def class_argument(text: str) -> tuple[Literal["class", "onehot"], int]:
    """Read ``"class:10"`` as ``("class", 10)``: what form an argument's classes have, how many."""
    kind, _, count = text.partition(":")
    if kind not in ("class", "onehot") or not (count.isdigit() and int(count)):
        raise ValueError(f"{text!r} is not like class:10 or onehot:10")
    return kind, int(count)


def argument(text: str) -> tuple[int, ...] | str:
    """Read the form of one argument: a shape, or classes, which stay text."""
    if ":" not in text:
        return shape(text)
    class_argument(text)
    return text
