"""A plan by measured time, with what was promised for it."""

from __future__ import annotations

from dataclasses import dataclass

from dsconvert.records import Plan
from dsconvert.search.decide import changes_nothing
from dsconvert.search.records import Probe, Promise
from dsconvert.search.units import figure


@dataclass(frozen=True, kw_only=True)
class MeasuredPlan:
    """A plan, the memory layout of its measurement, and its promise for each target."""

    plan: Plan
    channels_last: bool
    """Whether the model is to run with ``.to(memory_format=torch.channels_last)``."""
    promises: tuple[Promise, ...]
    loss: float
    """Sum of the relative errors of the convolutions, before any fit."""
    probe: Probe
    measured: int
    """Number of times measured now; the others come from the profile."""
    profile: str
    """Path of the profile."""
    missed: str | None = None
    """The reason if the targets can't be reached (only with ``best_effort``)."""
    notes: tuple[str, ...] = ()
    """Remarks on the figures, for people."""

    @property
    def unchanged(self) -> bool:
        """Whether the plan leaves the model as it is."""
        return changes_nothing(self.plan)

    def __str__(self) -> str:
        lines = [str(self.plan)]
        for p in self.promises:
            lines.append(
                f"{p.target.text}: {figure(p.metric, p.before)} before, "
                f"{figure(p.metric, p.promised)} promised"
            )
        return "\n".join(lines)
