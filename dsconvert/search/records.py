"""Targets, probes, readings, candidates and promises: the records of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dsconvert.bench import Settings, Timing
from dsconvert.search.units import typed

METRICS = ("latency", "train-time", "memory", "macs", "params")
"""``latency``: seconds of a forward pass; ``train-time``: seconds of forward + backward;
``memory``: bytes of parameters, their gradients and the activations kept for backward; ``macs`` of
one sample; ``params``."""
TIMED = ("latency", "train-time")


@dataclass(frozen=True, kw_only=True)
class Target:
    """An upper bound for one metric: a share of the original's figure, or a figure.

    Exactly one of ``ratio`` and ``absolute`` is set; the latter in seconds, bytes, MACs or
    parameters.
    """

    metric: str
    ratio: float | None = None
    absolute: float | None = None

    @property
    def text(self) -> str:
        """The target as a person types it."""
        if self.ratio is not None:
            return f"{self.metric}={self.ratio:g}x"
        return f"{self.metric}={typed(self.metric, float(self.absolute or 0))}"

    def budget(self, before: float) -> float:
        """Return the bound if the original's figure is ``before``."""
        return self.ratio * before if self.ratio is not None else float(self.absolute or 0)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The metrics to measure, and the conditions of the measurement."""

    metrics: tuple[str, ...]
    batch: int
    train_batch: int
    channels_last: bool
    settings: Settings
    repeats: int

    @property
    def timed(self) -> tuple[str, ...]:
        """The metrics that are measured by a clock."""
        return tuple(m for m in self.metrics if m in TIMED)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A measured time: the median of several runs and their quartiles, in seconds."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Reading:
        """Return the reading of the seconds of at least one run."""
        timing = Timing.of(seconds)
        low, high = timing.quartiles
        return cls(value=timing.median, low=low, high=high)

    @property
    def spread(self) -> float:
        """The interquartile range as a share of the median."""
        return (self.high - self.low) / self.value if self.value > 0 else 0.0

    def below(self, other: Reading) -> bool:
        """Return whether this one is shorter by more than the spread of both."""
        return self.high < other.low

    def times(self, factor: float) -> Reading:
        """Return a reading ``factor`` times as long."""
        return Reading(value=factor * self.value, low=factor * self.low, high=factor * self.high)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One form of one convolution, with its cost on this device and its loss."""

    rule: str | None
    """None: the dense convolution, its norm folded."""
    rank: int | None
    loss: float
    """Relative squared error of the output (with activations) or of the kernel (without)."""
    costs: dict[str, float] = field(default_factory=dict)
    """By metric; all calls of the convolution."""
    times: dict[str, Reading] = field(default_factory=dict)
    """By timed metric, the measurement behind its cost."""
    macs: float | None = None
    """Of one sample, whether or not they are a target; None: unknown."""


@dataclass(frozen=True, kw_only=True)
class Promise:
    """One target, with the predicted and the measured figure of the whole model."""

    target: Target
    before: float
    """The original's figure."""
    promised: float
    measured: float | None = None
    spread: tuple[float, float] | None = None
    """Quartiles of a measured time."""

    @property
    def metric(self) -> str:
        """The metric of the target."""
        return self.target.metric

    @property
    def budget(self) -> float:
        """The largest figure that the target allows."""
        return self.target.budget(self.before)

    @property
    def met(self) -> bool | None:
        """Whether the measured figure is within the budget; None before it was measured."""
        return None if self.measured is None else self.measured <= self.budget
