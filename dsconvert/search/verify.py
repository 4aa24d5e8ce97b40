"""Measure whole models, and compare them with the promises of a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from dsconvert.adapter import Adapter
from dsconvert.bench.machine import threads
from dsconvert.core.pipeline import cost
from dsconvert.errors import UsageError
from dsconvert.model.inputs import Inputs, examples_of, resolved_sampler, sampler_of
from dsconvert.model.observe import undisturbed
from dsconvert.search.clock import ORIGINAL, Clock, MachineClock, operation, subject
from dsconvert.search.consistency import TRIES, noisy
from dsconvert.search.decide import changes_nothing
from dsconvert.search.records import Probe, Promise, Reading, Target
from dsconvert.search.timer import width
from dsconvert.search.units import figure

if TYPE_CHECKING:
    from dsconvert.search.measured_plan import MeasuredPlan


@dataclass(frozen=True)
class Figure:
    """One metric of one model; a time has the reading behind it."""

    value: float
    reading: Reading | None = None


Figures = dict[str, Figure]
"""By metric."""


def whole_costs(
    original: nn.Module,
    others: Mapping[str, nn.Module],
    inputs: Inputs,
    probe: Probe,
    *,
    clock: Clock,
    adapter: Adapter | None = None,
    targets: Sequence[Target] = (),
    patient: bool = False,
) -> dict[str, Figures]:
    """Measure every metric of ``original`` and the others in turn (see :mod:`dsconvert.bench`).

    The original runs contiguous, the others in the probe's layout. Times are measured again, at
    most :data:`~dsconvert.search.consistency.TRIES` times in all, while their runs differ widely
    or a target is missed by no more than the spread; all runs count.

    Args:
        original: the model that was planned for.
        others: by name; none may be called ``original``.
        inputs: sampler of inputs.
        probe: what is measured, and how.
        clock: measures times.
        adapter: as for :func:`dsconvert.plan`.
        targets: of the others.
        patient: measure again after any miss, however large.

    Raises:
        UsageError: MACs are asked for, and a model's can't be counted.
    """
    models = {ORIGINAL: original, **others}
    found: dict[str, Figures] = {name: {} for name in models}
    for metric in probe.metrics:
        if metric in probe.timed:
            target = next((t for t in targets if t.metric == metric), None)
            readings = _timed(models, inputs, probe, metric, clock, target, patient=patient)
            for name, reading in readings.items():
                found[name][metric] = Figure(reading.value, reading)
        elif metric == "memory":
            for name, model in models.items():
                found[name][metric] = Figure(_memory(name, model, inputs, probe))
        elif metric == "params":
            for name, model in models.items():
                found[name][metric] = Figure(float(sum(p.numel() for p in model.parameters())))
        elif metric == "macs":
            for name, model in models.items():
                found[name][metric] = Figure(_macs(model, inputs, adapter))
    return found


def _macs(model: nn.Module, inputs: Inputs, adapter: Adapter | None) -> float:
    counted = cost(model, examples_of(model, inputs), adapter=adapter)
    if counted.macs is None:
        raise UsageError(
            f"macs can't be a target for this {type(model).__name__}: {counted.note}. Take another "
            "one (params, memory, latency or train-time)."
        )
    return float(counted.macs)


def _timed(
    models: Mapping[str, nn.Module],
    inputs: Inputs,
    probe: Probe,
    metric: str,
    clock: Clock,
    target: Target | None,
    *,
    patient: bool,
) -> dict[str, Reading]:
    runs: dict[str, list[float]] = {name: [] for name in models}
    readings: dict[str, Reading] = {}
    for _ in range(TRIES):
        for name, seconds in clock.whole(models, inputs, probe, metric=metric).items():
            runs[name] += seconds
        readings = {name: Reading.of(seconds) for name, seconds in runs.items()}
        if not any(noisy(r) for r in readings.values()) and not (
            target is not None and _open(target, readings, patient=patient)
        ):
            break
    return readings


def _open(target: Target, readings: Mapping[str, Reading], *, patient: bool) -> bool:
    """Return whether a target is missed and another measurement could still meet it."""
    budget = target.budget(readings[ORIGINAL].value)
    missed = [r for n, r in readings.items() if n != ORIGINAL and r.value > budget]
    return any(patient or r.low <= budget for r in missed)


def _memory(name: str, model: nn.Module, inputs: Inputs, probe: Probe) -> float:
    plain = dataclasses.replace(probe, channels_last=False) if name == ORIGINAL else probe
    made = subject(name, model, inputs, plain)
    try:
        with threads(probe.settings):
            kept = made.kept(operation("memory", probe))
    finally:
        made.close()
    return float(kept + 2 * width(probe) * sum(p.numel() for p in model.parameters()))


def verify(
    measured: MeasuredPlan,
    original: nn.Module,
    converted: nn.Module,
    *,
    inputs: Inputs | None = None,
    adapter: Adapter | None = None,
    clock: Clock | None = None,
) -> tuple[Promise, ...]:
    """Run the original and the converted model in turn; return the promises with the figures.

    The budget of a ratio target follows the original's figure of this run. A plan that changes
    nothing is not run, since it costs the same as the original. A missed target is measured again
    (a limited number of times), and all runs count.

    Args:
        measured: from :func:`~dsconvert.search.plan.plan_measured`.
        original: the model that was planned for; does not change.
        converted: the result of :func:`dsconvert.apply`; does not change.
        inputs: as for the plan.
        adapter: as for the plan.
        clock: measures times; None: this machine.
    """
    if changes_nothing(measured.plan):
        return tuple(dataclasses.replace(p, measured=p.promised) for p in measured.promises)
    sampler = resolved_sampler(original, inputs, adapter) or sampler_of(original)
    return _checked(
        measured.promises, original, converted, inputs=sampler,
        probe=measured.probe, clock=clock or MachineClock(), adapter=adapter,
    )  # fmt: skip


def promises_of(
    targets: Sequence[Target],
    original: nn.Module,
    converted: nn.Module,
    *,
    inputs: Inputs,
    probe: Probe,
    clock: Clock,
    adapter: Adapter | None = None,
    before: Figures,
    promised: Figures,
) -> tuple[Promise, ...]:
    """Run the original and a converted model in turn; return a promise for each target.

    Args:
        targets: of metrics that ``probe`` measures.
        original: the model that was planned for.
        converted: the model that is to keep the promises.
        inputs: sampler of inputs.
        probe: what is measured, and how.
        clock: measures times.
        adapter: as for :func:`dsconvert.plan`.
        before: the original's figures in an earlier measurement.
        promised: the plan's figures in that measurement.
    """
    rows = [
        Promise(target=t, before=before[t.metric].value, promised=promised[t.metric].value)
        for t in targets
    ]
    return _checked(
        rows, original, converted, inputs=inputs, probe=probe, clock=clock, adapter=adapter
    )


@undisturbed()
def _checked(
    promises: Sequence[Promise],
    original: nn.Module,
    converted: nn.Module,
    *,
    inputs: Inputs,
    probe: Probe,
    clock: Clock,
    adapter: Adapter | None,
) -> tuple[Promise, ...]:
    seen = whole_costs(
        original,
        {"converted": converted},
        inputs,
        probe,
        clock=clock,
        adapter=adapter,
        targets=[p.target for p in promises],
        patient=True,
    )
    checked: list[Promise] = []
    for p in promises:
        before, after = seen[ORIGINAL][p.metric], seen["converted"][p.metric]
        # A ratio target is the same share of this run's original.
        share = before.value / p.before if p.target.ratio is not None else 1.0
        reading = after.reading
        checked.append(
            dataclasses.replace(
                p,
                before=before.value,
                promised=p.promised * share,
                measured=after.value,
                spread=(reading.low, reading.high) if reading is not None else None,
            )
        )
    return tuple(checked)


def missed(promises: Sequence[Promise]) -> str | None:
    """Return a message about missed targets, with a remedy; None if every target is met.

    Args:
        promises: from :func:`verify`.
    """
    late = [p for p in promises if p.met is False]
    if not late:
        return None
    takes = ", ".join(
        f"{p.target.text} (the converted model takes {figure(p.metric, p.measured or 0.0)} of "
        f"{figure(p.metric, p.before)}, {(p.measured or 0.0) / p.before:.3g}x)"
        for p in late
    )
    return (
        f"missed in the measurement of the result: {takes}. Run it again while nothing else runs "
        "on the machine, or ask for a little less."
    )
