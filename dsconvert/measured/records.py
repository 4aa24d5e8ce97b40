"""What is wanted, what one convolution could become, and what a plan promises."""

from __future__ import annotations

from dataclasses import dataclass, field

from dsconvert.measured.units import typed

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
        """As a person types it."""
        if self.ratio is not None:
            return f"{self.metric}={self.ratio:g}x"
        return f"{self.metric}={typed(self.metric, float(self.absolute or 0))}"

    def budget(self, before: float) -> float:
        """The bound, where the original has ``before``."""
        return self.ratio * before if self.ratio is not None else float(self.absolute or 0)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One form of one convolution: what it costs here, and what it loses."""

    rule: str | None
    """None: the dense convolution, its norm folded."""
    rank: int | None
    loss: float
    """Relative squared error of the output (with activations) or of the kernel (without)."""
    costs: dict[str, float] = field(default_factory=dict)
    """By metric; all calls of the convolution."""


@dataclass(frozen=True, kw_only=True)
class Promise:
    """One target beside what was predicted and what was then measured on the whole model."""

    target: Target
    before: float
    """The original's figure."""
    promised: float
    measured: float | None = None
    spread: tuple[float, float] | None = None
    """Quartiles of a measured time."""

    @property
    def metric(self) -> str:
        """The target's."""
        return self.target.metric

    @property
    def budget(self) -> float:
        """The most that the target allows."""
        return self.target.budget(self.before)

    @property
    def met(self) -> bool | None:
        """Whether the measured figure is within the budget; None before it was measured."""
        return None if self.measured is None else self.measured <= self.budget
