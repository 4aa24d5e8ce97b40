"""From candidates to a plan: solve, run the whole model, correct.

What everything but the convolutions costs follows from the leanest plan run as a whole, less its
convolutions. A solved plan is then run as a whole beside the original; where it misses its budget,
the difference is added to the rest and it is solved again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from dsconvert.inputs import Inputs
from dsconvert.measured.decide import decided
from dsconvert.measured.records import Candidate, Promise, Target
from dsconvert.measured.sites import Probe
from dsconvert.measured.solve import least_loss, nearest
from dsconvert.measured.units import figure
from dsconvert.measured.verify import Figure, whole_costs
from dsconvert.records import Plan, Site
from dsconvert.rewrite import rewrite
from dsconvert.trace import Traced

Progress = Callable[[str, int, int, str], None]
Options = Sequence[Sequence[Candidate]]

_ROUNDS = 3
"""Solve, look at the whole model, correct, at most so often."""


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


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A layout's best plan."""

    plan: Plan
    probe: Probe
    promises: tuple[Promise, ...]
    loss: float


@dataclass(frozen=True, kw_only=True)
class Miss:
    """Why there is none."""

    sentence: str
    overrun: float
    """The worst ratio of a reachable figure to its budget."""


def search(
    job: Job,
    probe: Probe,
    options: Options,
    originals: Sequence[Mapping[str, float]],
    progress: Progress | None,
) -> Solution | Miss:
    """The plan with the least loss within the budgets, as far as ``options`` go.

    Args:
        job: the model and its targets.
        probe: layout, batches, settings.
        options: candidates of each of ``job.free``.
        originals: what each of these costs as it is, for the reasons in the plan.
        progress: called with ``(stage, done, total, detail)``.
    """

    def tell(done: int, detail: str) -> None:
        if progress is not None:
            progress("the whole model", done, _ROUNDS + 1, detail)

    def planned(choice: Sequence[int]) -> Plan:
        return decided(job.base, job.traced.trace, job.free, options, choice, originals, probe)

    def seen(plan: Plan) -> tuple[dict[str, Figure], dict[str, Figure]]:
        model = rewrite(job.model, job.traced.trace, plan).model
        found = whole_costs(job.model, {"plan": model}, job.inputs, probe)
        return found["original"], found["plan"]

    tell(0, "the leanest plan")
    leanest = nearest(options, _scales(options, probe), dict.fromkeys(probe.metrics, 0.0))
    original, lean = seen(planned(leanest))
    rest = {m: max(0.0, lean[m].value - _sum(options, leanest, m)) for m in probe.metrics}
    turn = 0
    while True:
        budgets = {t.metric: t.budget(original[t.metric].value) for t in job.targets}
        choice = least_loss(options, {m: b - rest[m] for m, b in budgets.items()})
        if choice is None:
            return _out_of_reach(job, options, original, rest, budgets)
        plan = planned(choice)
        promised = {m: rest[m] + _sum(options, choice, m) for m in probe.metrics}
        turn += 1
        tell(turn, f"round {turn}")
        now, got = seen(plan)
        over = {t.metric: got[t.metric].value - t.budget(now[t.metric].value) for t in job.targets}
        if all(v <= 0 for v in over.values()):
            break
        if turn == _ROUNDS:
            # Another correction would not be tried: promise what was seen.
            original, promised = now, {m: got[m].value for m in probe.metrics}
            break
        for metric, miss in over.items():
            # What is over its budget was cheaper on paper than it is.
            if miss > 0:
                rest[metric] += max(got[metric].value - promised[metric], miss)
    tell(_ROUNDS + 1, "")
    return Solution(
        plan=plan,
        probe=probe,
        promises=tuple(
            Promise(
                target=t,
                before=original[t.metric].value,
                promised=promised[t.metric],
            )
            for t in job.targets
        ),
        loss=sum(o[i].loss for o, i in zip(options, choice, strict=True)),
    )


def _sum(options: Options, chosen: Sequence[int], metric: str) -> float:
    return sum(o[i].costs[metric] for o, i in zip(options, chosen, strict=True))


def _scales(options: Options, probe: Probe) -> dict[str, float]:
    """By metric, what the dense convolutions add up to: overruns of metrics compare by it."""
    return {m: max(sum(o[0].costs[m] for o in options), 1e-30) for m in probe.metrics}


def _out_of_reach(
    job: Job,
    options: Options,
    original: Mapping[str, Figure],
    rest: Mapping[str, float],
    budgets: Mapping[str, float],
) -> Miss:
    best = nearest(options, budgets, rest)
    reached = {m: rest[m] + _sum(options, best, m) for m in budgets}
    near = ", ".join(
        f"{m}={reached[m] / original[m].value:.3g}x ({figure(m, reached[m])} of "
        f"{figure(m, original[m].value)})"
        for m in budgets
    )
    asked = ", ".join(t.text for t in job.targets)
    together = " together" if len(budgets) > 1 else ""
    return Miss(
        sentence=f"{asked} can't be reached{together} on this device: the nearest is {near}, with "
        "the cheapest measured form of every convolution; ask for no less than that.",
        overrun=max(reached[m] / budgets[m] for m in budgets),
    )
