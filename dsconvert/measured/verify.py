"""Whole models under the probe: what a promise is held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from dsconvert.bench import compare
from dsconvert.bench.machine import threads, weight_type
from dsconvert.inputs import Inputs, sampler_of
from dsconvert.measured.records import TIMED, Promise
from dsconvert.measured.sites import Probe, operation, whole
from dsconvert.pipeline import cost

if TYPE_CHECKING:
    from dsconvert.measured.plan import MeasuredPlan


@dataclass(frozen=True)
class Figure:
    """One metric of one model; a time has its quartiles."""

    value: float
    spread: tuple[float, float] | None = None


def _memory(kept: int, model: nn.Module, probe: Probe) -> float:
    narrow = 2 if weight_type(probe.settings) in (torch.float16, torch.bfloat16) else 4
    return float(kept + 2 * narrow * sum(p.numel() for p in model.parameters()))


def whole_costs(
    original: nn.Module, others: Mapping[str, nn.Module], inputs: Inputs, probe: Probe
) -> dict[str, dict[str, Figure]]:
    """Every metric of ``original`` and of the others, timed in turn (see :mod:`dsconvert.bench`).

    The original runs contiguous, as it is; the others in the probe's layout.
    """
    models = {"original": original, **others}
    found: dict[str, dict[str, Figure]] = {name: {} for name in models}
    plain = dataclasses.replace(probe, channels_last=False)
    subjects = [
        whole(name, m, inputs, plain if name == "original" else probe) for name, m in models.items()
    ]
    try:
        with threads(probe.settings):
            for metric in probe.metrics:
                if metric in TIMED:
                    done = operation(metric, probe)
                    for m in compare(subjects, [done], repeats=probe.repeats, memory=False):
                        timing = m.times[done]
                        found[m.name][metric] = Figure(timing.median, timing.quartiles)
                elif metric == "memory":
                    step = operation(metric, probe)
                    for s in subjects:
                        found[s.name][metric] = Figure(_memory(s.kept(step), models[s.name], probe))
    finally:
        for s in subjects:
            s.close()
    for name, model in models.items():
        if "params" in probe.metrics:
            found[name]["params"] = Figure(float(sum(p.numel() for p in model.parameters())))
        if "macs" in probe.metrics:
            example = inputs(1, torch.Generator().manual_seed(0))
            found[name]["macs"] = Figure(float(cost(model, example).macs or 0))
    return found


def verify(
    measured: MeasuredPlan,
    original: nn.Module,
    converted: nn.Module,
    *,
    inputs: Inputs | None = None,
) -> tuple[Promise, ...]:
    """Run the original and the converted model in turn; the promises with what was measured.

    The budgets of ratio targets follow the original's figure of this very run.

    Args:
        measured: from :func:`~dsconvert.measured.plan.plan_measured`.
        original: the model that was planned for.
        converted: what :func:`dsconvert.apply` made of it.
        inputs: as for the plan.
    """
    seen = whole_costs(
        original, {"converted": converted}, inputs or sampler_of(original), measured.probe
    )
    return tuple(
        dataclasses.replace(
            p,
            before=seen["original"][p.metric].value,
            # A ratio was promised as a ratio: the same share of this run's original.
            promised=p.promised / p.before * seen["original"][p.metric].value
            if p.target.ratio is not None
            else p.promised,
            measured=seen["converted"][p.metric].value,
            spread=seen["converted"][p.metric].spread,
        )
        for p in measured.promises
    )
