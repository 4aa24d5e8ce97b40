"""Frozen records of a measurement: settings, operations and results. Imports no torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The device and mode in which models are measured."""

    device: str = "auto"
    """A torch device; ``auto`` is the first accelerator, or else the CPU."""
    dtype: str = "float32"
    """One of :data:`dsconvert.records.DTYPES`."""
    channels_last: bool = False
    compile: bool = False
    """Use ``torch.compile``; the compilation itself is not timed."""
    threads: int | None = None
    """CPU threads of torch; None: torch's default."""
    keep_freed: bool = False
    """Whether a child process keeps the memory it frees (:mod:`dsconvert.util.allocator`)."""


@dataclass(frozen=True, order=True, kw_only=True)
class Operation:
    """A forward pass in eval mode, or forward + backward of a training step."""

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
        """Return the timing of at least one run."""
        return cls(seconds=tuple(seconds))

    @property
    def median(self) -> float:
        """The median in seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and third quartile in seconds (the extremes of fewer than four runs)."""
        if len(self.seconds) < 4:
            return min(self.seconds), max(self.seconds)
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The figures of one model, in bytes and seconds; None: not measured."""

    name: str
    params: int
    times: dict[Operation, Timing] = field(default_factory=dict)
    peaks: dict[Operation, int | None] = field(default_factory=dict)
    """Peak memory of the operation with the model, above an empty process: resident bytes on the
    CPU, allocated device bytes elsewhere."""
    kept: dict[Operation, int] = field(default_factory=dict)
    """Activations kept for the backward pass: bytes of unique storages, without parameters."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of the machine, with the same threads and type."""

    macs_per_second: float
    """Multiply-accumulates of a large matrix product."""
    bytes_per_second: float
    """Bytes read and written by a large copy."""

    def floor(self, macs: float, traffic: float) -> float:
        """Return the least seconds of a run that needs ``macs`` and moves ``traffic`` bytes."""
        return max(macs / self.macs_per_second, traffic / self.bytes_per_second)
