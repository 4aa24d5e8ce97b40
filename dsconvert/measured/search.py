"""From candidates to a plan: solve, run the whole model, correct.

What everything but the convolutions costs follows from the leanest plan run as a whole, less its
convolutions. A solved plan is then run as a whole beside the original; where it misses its budget,
the difference is added to the rest and it is solved again. Every plan that was run is an attempt,
and so is the original as it is, which takes 1.0x of everything and loses nothing: of the attempts
that meet the targets the one with the least loss is taken, and where none does, the nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from dsconvert.inputs import Inputs
from dsconvert.measured.clock import ORIGINAL, Clock
from dsconvert.measured.decide import as_it_is, changes_nothing, decided, macs_of
from dsconvert.measured.doubts import differ, exceeds, worthwhile
from dsconvert.measured.records import Candidate, Probe, Promise, Target
from dsconvert.measured.sites import Forms
from dsconvert.measured.solve import least_loss, nearest
from dsconvert.measured.units import figure
from dsconvert.measured.verify import Figures, whole_costs
from dsconvert.records import Plan, Site
from dsconvert.rewrite import rewrite
from dsconvert.trace import Traced

Progress = Callable[[str, int, int, str], None]
Options = Sequence[Sequence[Candidate]]

_ROUNDS = 3
"""Solve, look at the whole model, correct, at most so often."""
_MARGIN = 0.05
"""A plan is solved for a budget less the spread of the whole model's times, but no less than this
share: a time at its very bound would be met today and missed tomorrow."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What stays the same while layouts and rounds go by."""

    model: nn.Module
    traced: Traced
    inputs: Inputs
    base: Plan
    """Decisions for the convolutions that are not free (dead, kept on request)."""
    free: tuple[Site, ...]
    targets: tuple[Target, ...]
    clock: Clock


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A plan that was run as a whole, beside the original."""

    plan: Plan
    loss: float
    before: Figures
    got: Figures

    def overrun(self, targets: Sequence[Target]) -> float:
        """The worst ratio of a figure to its budget; at most 1 where every target is met."""
        return max(
            self.got[t.metric].value / t.budget(self.before[t.metric].value) for t in targets
        )

    def sensible(self, probe: Probe) -> bool:
        """Not slower than the original, and no more MACs but for a gain in time."""
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
    """A layout's best plan."""

    plan: Plan
    probe: Probe
    promises: tuple[Promise, ...]
    loss: float
    overrun: float
    missed: str | None = None
    """Why the targets can't be reached, and the nearest; None: they are."""
    notes: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Parts:
    """The convolutions by themselves: their forms, and what was measured of these so far."""

    forms: list[Forms] = field(default_factory=list[Forms])
    originals: list[Candidate] = field(default_factory=list[Candidate])
    options: list[list[Candidate]] = field(default_factory=list[list[Candidate]])

    def again(self, chosen: Sequence[int], probe: Probe) -> None:
        """Measure the originals and the chosen forms again, and all others if these differ."""
        before = self._times(chosen, probe)
        for site, index in enumerate(chosen):
            self.originals[site] = self.forms[site].original(again=True)
            self._form_again(site, index)
        after = self._times(chosen, probe)
        # What was measured beside them was disturbed as well.
        if any(differ(b, a) for b, a in zip(before, after, strict=True)):
            for site, options in enumerate(self.options):
                for index in range(len(options)):
                    self._form_again(site, index)

    def _form_again(self, site: int, index: int) -> None:
        self.options[site][index] = self.forms[site].again(self.options[site][index])

    def _times(self, chosen: Sequence[int], probe: Probe) -> list[float]:
        return [
            sum(c.costs[m] for c in self.originals) + _sum(self.options, chosen, m)
            for m in probe.timed
        ]


def unchanged(job: Job, before: Figures, reason: str) -> Attempt:
    """The original as it is."""
    plan = as_it_is(job.base, job.traced.trace, reason)
    return Attempt(plan=plan, loss=0.0, before=before, got=before)


def solution(
    job: Job, probe: Probe, attempt: Attempt, *, missed: str | None = None,
    notes: Sequence[str] = (),
) -> Solution:  # fmt: skip
    """What an attempt promises."""
    promises = tuple(
        Promise(
            target=t,
            before=attempt.before[t.metric].value,
            promised=attempt.got[t.metric].value,
        )
        for t in job.targets
    )
    return Solution(
        plan=attempt.plan,
        probe=probe,
        promises=promises,
        loss=attempt.loss,
        overrun=attempt.overrun(job.targets),
        missed=missed,
        notes=tuple(notes),
    )


def search(
    job: Job, probe: Probe, parts: Parts, before: Figures, progress: Progress | None
) -> Solution:
    """The plan with the least loss within the budgets, as far as the forms go, or the nearest.

    Args:
        job: the model and its targets.
        probe: layout, batches, settings.
        parts: the convolutions by themselves; those that are in doubt are measured again.
        before: what the original costs as a whole.
        progress: called with ``(stage, done, total, detail)``.
    """

    def tell(done: int, detail: str) -> None:
        if progress is not None:
            progress("the whole model", done, _ROUNDS + 1, detail)

    notes: list[str] = []
    attempts = [unchanged(job, before, "left as it is: no plan that meets the targets was found")]
    tell(0, "the leanest plan")
    worth = _worthwhile(parts, probe)
    leanest = _leanest(worth, probe)
    lean = _attempt(job, probe, parts, worth, leanest)
    attempts.append(lean)
    if _in_doubt(probe, parts, worth, leanest, lean):
        parts.again(_indices(parts, worth, leanest), probe)
        worth = _worthwhile(parts, probe)
        shares = _shares(probe, worth, _leanest(worth, probe), lean)
        notes += [
            f"{m}: the convolutions by themselves take {1 / s:.2g} times what they take in the "
            "whole model, also when measured again; they count in proportion"
            for m, s in shares.items()
        ]
        worth = [[_scaled(c, shares) for c in site] for site in worth]
        if (again := _leanest(worth, probe)) != leanest:
            leanest, lean = again, _attempt(job, probe, parts, worth, again)
            attempts.append(lean)
    rest = {m: max(0.0, lean.got[m].value - _sum(worth, leanest, m)) for m in probe.metrics}
    margins = {m: _margin(lean, m) for m in probe.timed}
    for turn in range(1, _ROUNDS + 1):
        choice = _chosen(job, worth, rest, lean.before, margins)
        if choice is None:
            if len(job.targets) > 1 and len(attempts) == 2:
                budgets = _budgets(job, lean.before)
                attempts.append(_attempt(job, probe, parts, worth, nearest(worth, budgets, rest)))
            break
        tell(turn, f"round {turn}")
        tried = _attempt(job, probe, parts, worth, choice)
        attempts.append(tried)
        if tried.overrun(job.targets) <= 1:
            break
        for t in job.targets:
            # What is over its budget was cheaper on paper than it is.
            got = tried.got[t.metric].value
            miss = got - t.budget(tried.before[t.metric].value)
            if miss > 0:
                rest[t.metric] += max(got - rest[t.metric] - _sum(worth, choice, t.metric), miss)
    tell(_ROUNDS + 1, "")
    sensible = [a for a in attempts if a.sensible(probe)]
    met = [a for a in sensible if a.overrun(job.targets) <= 1]
    if met:
        return solution(job, probe, min(met, key=lambda a: a.loss), notes=notes)
    best = min(sensible, key=lambda a: a.overrun(job.targets))
    return solution(
        job, probe, best, missed=_out_of_reach(job, worth, best, rest, lean.before), notes=notes
    )


def _attempt(
    job: Job, probe: Probe, parts: Parts, options: Options, choice: Sequence[int]
) -> Attempt:
    plan = decided(job.base, job.traced.trace, job.free, options, choice, parts.originals, probe)
    model = rewrite(job.model, job.traced.trace, plan).model
    found = whole_costs(
        job.model, {"plan": model}, job.inputs, probe, clock=job.clock, targets=job.targets
    )
    loss = sum(o[i].loss for o, i in zip(options, choice, strict=True))
    return Attempt(plan=plan, loss=loss, before=found[ORIGINAL], got=found["plan"])


def _worthwhile(parts: Parts, probe: Probe) -> list[list[Candidate]]:
    return [
        worthwhile(forms, original, probe)
        for forms, original in zip(parts.options, parts.originals, strict=True)
    ]


def _indices(parts: Parts, worth: Options, chosen: Sequence[int]) -> list[int]:
    """Where the chosen ones of the worthwhile forms stand among all forms."""
    return [
        next(i for i, c in enumerate(forms) if c is site[index])
        for forms, site, index in zip(parts.options, worth, chosen, strict=True)
    ]


def _in_doubt(
    probe: Probe, parts: Parts, worth: Options, chosen: Sequence[int], lean: Attempt
) -> bool:
    """Whether the parts, of the original or of the plan, seem to take more than the whole."""
    for metric in probe.timed:
        whole, after = lean.before[metric].reading, lean.got[metric].reading
        before = sum(c.costs[metric] for c in parts.originals)
        if whole is not None and exceeds(before, whole):
            return True
        if after is not None and exceeds(_sum(worth, chosen, metric), after):
            return True
    return False


def _shares(probe: Probe, worth: Options, chosen: Sequence[int], lean: Attempt) -> dict[str, float]:
    """By metric, what the whole takes of the sum of its parts, where it is still less."""
    found: dict[str, float] = {}
    for metric in probe.timed:
        reading, total = lean.got[metric].reading, _sum(worth, chosen, metric)
        if reading is not None and exceeds(total, reading):
            found[metric] = reading.value / total
    return found


def _scaled(candidate: Candidate, shares: Mapping[str, float]) -> Candidate:
    return Candidate(
        rule=candidate.rule,
        rank=candidate.rank,
        loss=candidate.loss,
        costs={m: c * shares.get(m, 1.0) for m, c in candidate.costs.items()},
        times={m: t.times(shares.get(m, 1.0)) for m, t in candidate.times.items()},
        macs=candidate.macs,
    )


def _margin(lean: Attempt, metric: str) -> float:
    readings = [r for r in (lean.before[metric].reading, lean.got[metric].reading) if r is not None]
    return min(_MARGIN, max((r.spread / 2 for r in readings), default=0.0))


def _budgets(job: Job, before: Figures) -> dict[str, float]:
    return {t.metric: t.budget(before[t.metric].value) for t in job.targets}


def _chosen(
    job: Job,
    options: Options,
    rest: Mapping[str, float],
    before: Figures,
    margins: Mapping[str, float],
) -> tuple[int, ...] | None:
    """The least loss, with a margin for the noise if there is room for one."""
    budgets = _budgets(job, before)
    careful = {m: b * (1 - margins.get(m, 0.0)) - rest[m] for m, b in budgets.items()}
    choice = least_loss(options, careful)
    if choice is None and any(margins.values()):
        choice = least_loss(options, {m: b - rest[m] for m, b in budgets.items()})
    return choice


def _sum(options: Options, chosen: Sequence[int], metric: str) -> float:
    return sum(o[i].costs[metric] for o, i in zip(options, chosen, strict=True))


def _leanest(options: Options, probe: Probe) -> tuple[int, ...]:
    # What the first forms add up to: overruns of different metrics compare by it.
    scales = {m: max(sum(o[0].costs[m] for o in options), 1e-30) for m in probe.metrics}
    return nearest(options, scales, dict.fromkeys(probe.metrics, 0.0))


def _out_of_reach(
    job: Job, options: Options, best: Attempt, rest: Mapping[str, float], before: Figures
) -> str:
    near = ", ".join(
        f"{m}={best.got[m].value / best.before[m].value:.3g}x "
        f"({figure(m, best.got[m].value)} of {figure(m, best.before[m].value)})"
        for m in (t.metric for t in job.targets)
    )
    if changes_nothing(best.plan):
        near += ", the model left as it is; no other plan that was run is nearer and not slower"
    asked = ", ".join(t.text for t in job.targets)
    if len(job.targets) == 1:
        return f"{asked} can't be reached on this device: the nearest is {near}."
    alone = {
        t.text: least_loss(options, {t.metric: _budgets(job, before)[t.metric] - rest[t.metric]})
        for t in job.targets
    }
    out = [text for text, choice in alone.items() if choice is None]
    why = (
        f"{' and '.join(out)} {'is' if len(out) == 1 else 'are'} out of reach without the others, "
        "too" if out else "each of them can be reached alone, but they contradict each other"
    )  # fmt: skip
    return f"{asked} can't be reached together on this device ({why}): the nearest is {near}."
