"""Frozen records of what is measured, how, and what came out. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, order=True, kw_only=True)
class Operation:
    """One thing to time: a forward pass in eval mode, or a training step's forward + backward."""

    kind: Literal["forward", "step"]
    batch: int

    def __str__(self) -> str:
        what = "forward" if self.kind == "forward" else "forward + backward"
        return f"{what}, batch {self.batch}"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Wall-clock seconds of single runs; the spread is the interquartile range."""

    seconds: tuple[float, ...]

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """From at least one run."""
        return cls(seconds=tuple(seconds))

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile, seconds (the extremes of fewer than four runs)."""
        if len(self.seconds) < 4:
            return min(self.seconds), max(self.seconds)
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Everything that was measured of one model. Bytes, seconds; None: not measured."""

    name: str
    params: int
    times: dict[Operation, Timing] = field(default_factory=dict)
    peaks: dict[Operation, int | None] = field(default_factory=dict)
    """Peak memory of the operation with the model, above an empty process: resident bytes on the
    CPU, allocated device bytes elsewhere."""
    kept: dict[Operation, int] = field(default_factory=dict)
    """Activations kept for backward: bytes of unique storages, parameters left out."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the machine itself can do, with the same threads and type."""

    macs_per_second: float
    """Multiply-accumulates of a large matrix product."""
    bytes_per_second: float
    """Bytes read and written by a large copy."""

    def floor(self, macs: float, traffic: float) -> float:
        """Seconds below which no run can be that needs ``macs`` and moves ``traffic`` bytes."""
        return max(macs / self.macs_per_second, traffic / self.bytes_per_second)
