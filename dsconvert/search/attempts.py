"""Plans that were run on the whole model, and the promises of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsconvert.core.analysis import Analysis
from dsconvert.model.inputs import Inputs
from dsconvert.records import Plan, Site
from dsconvert.search.clock import Clock
from dsconvert.search.decide import as_it_is, changes_nothing, macs_of
from dsconvert.search.records import Probe, Promise, Target
from dsconvert.search.units import figure
from dsconvert.search.verify import Figures


@dataclass(frozen=True, kw_only=True)
class Task:
    """The input of a search, the same for all layouts and rounds."""

    original: Analysis
    analysis: Analysis
    """Of a copy with the plan's widths; of the original if there are none."""
    inputs: Inputs
    base: Plan
    """The widths, and the decisions for convolutions that are not free (dead, kept on request)."""
    free: tuple[Site, ...]
    targets: tuple[Target, ...]
    clock: Clock


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A plan that was run on the whole model, beside the original."""

    plan: Plan
    loss: float
    before: Figures
    got: Figures

    def overrun(self, targets: Sequence[Target]) -> float:
        """Return the worst ratio of a figure to its budget; at most 1 if every target is met."""
        return max(
            self.got[t.metric].value / t.budget(self.before[t.metric].value) for t in targets
        )

    def sensible(self, probe: Probe) -> bool:
        """Return whether it is not slower than the original; more MACs need a gain in time."""
        if changes_nothing(self.plan):
            return True
        if any(self.got[m].value > self.before[m].value for m in probe.timed):
            return False
        macs = macs_of(self.plan)
        if macs is None or macs[1] <= macs[0]:
            return True
        pairs = [(self.got[m].reading, self.before[m].reading) for m in probe.timed]
        return any(a is not None and b is not None and a.below(b) for a, b in pairs)


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The best plan of one memory layout."""

    plan: Plan
    probe: Probe
    promises: tuple[Promise, ...]
    loss: float
    overrun: float
    missed: str | None = None
    """The reason why the targets can't be reached, with the nearest plan, or None."""
    notes: tuple[str, ...] = ()


def unchanged(task: Task, before: Figures, reason: str) -> Attempt:
    """Return the attempt that leaves the original as it is."""
    plan = as_it_is(task.base, task.original.sites, reason)
    return Attempt(plan=plan, loss=0.0, before=before, got=before)


def solution(
    task: Task, probe: Probe, attempt: Attempt, *, missed: str | None = None,
    notes: Sequence[str] = (),
) -> Solution:  # fmt: skip
    """Return the solution of an attempt, with a promise for each target."""
    promises = tuple(
        Promise(
            target=t,
            before=attempt.before[t.metric].value,
            promised=attempt.got[t.metric].value,
        )
        for t in task.targets
    )
    return Solution(
        plan=attempt.plan,
        probe=probe,
        promises=promises,
        loss=attempt.loss,
        overrun=attempt.overrun(task.targets),
        missed=missed,
        notes=tuple(notes),
    )


def budgets_of(task: Task, before: Figures) -> dict[str, float]:
    """Return the budget of each metric, if the original costs ``before``."""
    return {t.metric: t.budget(before[t.metric].value) for t in task.targets}


def out_of_reach(targets: Sequence[Target], best: Attempt, alone: Sequence[bool]) -> str:
    """Return a message that the targets can't be reached, with the reason and the nearest plan.

    Args:
        targets: those that were asked for.
        best: the nearest attempt.
        alone: whether each target can be reached without the others.
    """
    near = ", ".join(
        f"{m}={best.got[m].value / best.before[m].value:.3g}x "
        f"({figure(m, best.got[m].value)} of {figure(m, best.before[m].value)})"
        for m in (t.metric for t in targets)
    )
    if changes_nothing(best.plan):
        near += ", the model left as it is; no other plan that was run is nearer and not slower"
    asked = ", ".join(t.text for t in targets)
    if len(targets) == 1:
        return f"{asked} can't be reached on this device: the nearest is {near}."
    out = [t.text for t, reached in zip(targets, alone, strict=True) if not reached]
    why = "each of them can be reached alone, but they contradict each other"
    if out:
        are = "is" if len(out) == 1 else "are"
        why = f"{' and '.join(out)} {are} out of reach without the others, too"
    return f"{asked} can't be reached together on this device ({why}): the nearest is {near}."
