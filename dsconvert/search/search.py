"""From candidates to a plan: solve, run the whole model, correct.

The cost outside the convolutions is that of the leanest plan, run on the whole model, minus its
convolutions. A solved plan is run on the whole model beside the original. If it misses its budget,
the difference is added to the fixed cost and the plan is solved again. Every plan that ran is an
attempt, and so is the unchanged original. Of the attempts that meet the targets, the one with the
least loss is selected; if none does, the nearest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dsconvert.core.rewrite import rewrite
from dsconvert.search.attempts import (
    Attempt,
    Solution,
    Task,
    budgets_of,
    out_of_reach,
    solution,
    unchanged,
)
from dsconvert.search.clock import ORIGINAL
from dsconvert.search.decide import decided
from dsconvert.search.parts import (
    Options,
    Parts,
    in_doubt,
    indices_of,
    scaled,
    shares_of,
    total,
    worthwhile_of,
)
from dsconvert.search.records import Probe
from dsconvert.search.solve import least_loss, nearest
from dsconvert.search.verify import Figures, whole_costs
from dsconvert.util.progress import Progress

_ROUNDS = 3
"""The largest number of rounds: solve, run the whole model, correct."""
_MARGIN = 0.05
"""A plan is solved for a budget less the spread of the whole model's times, but no less than this
share: a time exactly at its bound would be met in one run and missed in the next."""


def search(
    task: Task, probe: Probe, parts: Parts, before: Figures, progress: Progress | None
) -> Solution:
    """Return the plan with the least loss within the budgets, or the nearest plan.

    Args:
        task: the model and its targets.
        probe: layout, batches, settings.
        parts: the measured convolutions; implausible times are measured again.
        before: the costs of the whole original.
        progress: called with ``(stage, done, total, detail)``.
    """

    def tell(done: int, detail: str) -> None:
        if progress is not None:
            progress("the whole model", done, _ROUNDS + 1, detail)

    notes: list[str] = []
    attempts = [unchanged(task, before, "left as it is: no plan that meets the targets was found")]
    tell(0, "the leanest plan")
    worth = worthwhile_of(parts, probe)
    leanest = _leanest(worth, probe)
    lean = _attempt(task, probe, parts, worth, leanest)
    attempts.append(lean)
    if in_doubt(probe, parts, worth, leanest, lean):
        parts.again(indices_of(parts, worth, leanest), probe)
        worth = worthwhile_of(parts, probe)
        shares = shares_of(probe, worth, _leanest(worth, probe), lean)
        notes += [
            f"{m}: the convolutions by themselves take {1 / s:.2g} times what they take in the "
            "whole model, also when measured again; they count in proportion"
            for m, s in shares.items()
        ]
        worth = [[scaled(c, shares) for c in site] for site in worth]
        if (again := _leanest(worth, probe)) != leanest:
            leanest, lean = again, _attempt(task, probe, parts, worth, again)
            attempts.append(lean)
    rest = {m: max(0.0, lean.got[m].value - total(worth, leanest, m)) for m in probe.metrics}
    margins = {m: _margin(lean, m) for m in probe.timed}
    for turn in range(1, _ROUNDS + 1):
        choice = _chosen(task, worth, rest, lean.before, margins)
        if choice is None:
            if len(task.targets) > 1 and len(attempts) == 2:
                budgets = budgets_of(task, lean.before)
                attempts.append(_attempt(task, probe, parts, worth, nearest(worth, budgets, rest)))
            break
        tell(turn, f"round {turn}")
        tried = _attempt(task, probe, parts, worth, choice)
        attempts.append(tried)
        if tried.overrun(task.targets) <= 1:
            break
        for t in task.targets:
            # The estimate was too low where a figure exceeds its budget.
            got = tried.got[t.metric].value
            miss = got - t.budget(tried.before[t.metric].value)
            if miss > 0:
                rest[t.metric] += max(got - rest[t.metric] - total(worth, choice, t.metric), miss)
    tell(_ROUNDS + 1, "")
    sensible = [a for a in attempts if a.sensible(probe)]
    met = [a for a in sensible if a.overrun(task.targets) <= 1]
    if met:
        return solution(task, probe, min(met, key=lambda a: a.loss), notes=notes)
    best = min(sensible, key=lambda a: a.overrun(task.targets))
    budgets = budgets_of(task, lean.before)
    alone = [
        least_loss(worth, {t.metric: budgets[t.metric] - rest[t.metric]}) is not None
        for t in task.targets
    ]
    return solution(task, probe, best, missed=out_of_reach(task.targets, best, alone), notes=notes)


def _attempt(
    task: Task, probe: Probe, parts: Parts, options: Options, choice: Sequence[int]
) -> Attempt:
    plan = decided(
        task.base,
        task.original.sites,
        task.analysis.sites,
        task.free,
        options,
        choice,
        parts.originals,
        probe,
    )
    model = rewrite(task.analysis.model, task.analysis.sites, plan).model
    found = whole_costs(
        task.original.model,
        {"plan": model},
        task.inputs,
        probe,
        clock=task.clock,
        adapter=task.original.adapter,
        targets=task.targets,
    )
    loss = sum(o[i].loss for o, i in zip(options, choice, strict=True))
    return Attempt(plan=plan, loss=loss, before=found[ORIGINAL], got=found["plan"])


def _margin(lean: Attempt, metric: str) -> float:
    readings = [r for r in (lean.before[metric].reading, lean.got[metric].reading) if r is not None]
    return min(_MARGIN, max((r.spread / 2 for r in readings), default=0.0))


def _chosen(
    task: Task,
    options: Options,
    rest: Mapping[str, float],
    before: Figures,
    margins: Mapping[str, float],
) -> tuple[int, ...] | None:
    """Return the choice with the least loss, with a margin for noise if possible."""
    budgets = budgets_of(task, before)
    careful = {m: b * (1 - margins.get(m, 0.0)) - rest[m] for m, b in budgets.items()}
    choice = least_loss(options, careful)
    if choice is None and any(margins.values()):
        choice = least_loss(options, {m: b - rest[m] for m, b in budgets.items()})
    return choice


def _leanest(options: Options, probe: Probe) -> tuple[int, ...]:
    # The sums of the first forms make overruns of different metrics comparable.
    scales = {m: max(sum(o[0].costs[m] for o in options), 1e-30) for m in probe.metrics}
    return nearest(options, scales, dict.fromkeys(probe.metrics, 0.0))
