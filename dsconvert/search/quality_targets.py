"""Promises of quality as a person types them: ``fd=1.05x``, ``psnr=30dB``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dsconvert.errors import TargetError
from dsconvert.records import Quality

_FORM = re.compile(r"(fd|psnr)\s*=\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)")


@dataclass(frozen=True, kw_only=True)
class QualityTarget:
    """A bound for the measured quality.

    ``fd``: FD-lite0 is at most ``bound`` times its noise floor; ``psnr``: the mean PSNR to the
    original is at least ``bound`` dB.
    """

    metric: Literal["fd", "psnr"]
    bound: float

    @property
    def text(self) -> str:
        """The target as a person types it."""
        return f"{self.metric}={self.bound:g}{'x' if self.metric == 'fd' else 'dB'}"

    def value(self, quality: Quality) -> float | None:
        """Return the figure that the bound is for; None where it was not measured."""
        return quality.ratio if self.metric == "fd" else quality.psnr

    def shown(self, quality: Quality) -> str:
        """Return the figure and its interval for a person."""
        if self.metric == "psnr":
            low, high = quality.psnr_interval
            return f"psnr={quality.psnr:.1f}dB ({low:.1f} to {high:.1f})"
        if quality.ratio is None or quality.ratio_interval is None:
            return "fd unknown"
        low, high = quality.ratio_interval
        return f"fd={quality.ratio:.3f}x ({low:.2f} to {high:.2f})"

    def overrun(self, quality: Quality) -> float:
        """Return how far a figure is from its bound: at most 1 where the bound holds."""
        value = self.value(quality)
        if value is None:
            return float("inf")
        # 6 dB are a factor of two.
        return value / self.bound if self.metric == "fd" else 2 ** ((self.bound - value) / 6)


def parse_quality(text: str) -> QualityTarget:
    """Read ``fd=1.05x`` or ``psnr=30dB``.

    Raises:
        TargetError: it is neither.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise TargetError(
            f"{text!r} is no promise of quality; write fd=1.05x (of the noise floor of FD-lite0) "
            "or psnr=30dB."
        )
    metric, bound, unit = found[1], float(found[2]), found[3]
    wanted = "x" if metric == "fd" else "dB"
    if unit.lower() != wanted.lower():
        raise TargetError(f"{text!r}: write {metric}={bound:g}{wanted}.")
    if bound <= 0:
        raise TargetError(f"{text!r} can't be reached: give a number above 0.")
    return QualityTarget(metric="fd" if metric == "fd" else "psnr", bound=bound)


def parse_qualities(texts: Sequence[str]) -> tuple[QualityTarget, ...]:
    """Read several promises; each metric may occur once.

    Raises:
        TargetError: a metric occurs twice, or see :func:`parse_quality`.
    """
    found = tuple(parse_quality(t) for t in texts)
    names = [t.metric for t in found]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise TargetError(f"{twice} is promised twice; give each once.")
    return found


def worst(targets: Sequence[QualityTarget], quality: Quality) -> float:
    """Return the largest overrun; at most 1 where every promise holds."""
    return max((t.overrun(quality) for t in targets), default=0.0)
