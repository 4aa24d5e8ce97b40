"""Chosen candidates as a plan's decisions, with the reason for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from dsconvert.measured.records import TIMED, Candidate
from dsconvert.measured.sites import Probe
from dsconvert.measured.units import figure
from dsconvert.planner import structural
from dsconvert.records import Decision, Plan, Site, Trace
from dsconvert.rewrite import costed


def _metric(probe: Probe) -> str:
    return next((m for m in probe.metrics if m in TIMED), probe.metrics[0])


def _reason(
    site: Site, options: Sequence[Candidate], chosen: Candidate, original: Mapping[str, float],
    metric: str,
) -> str:  # fmt: skip
    cost = figure(metric, chosen.costs[metric])
    if chosen.rule is not None:
        loss = f"error {100 * chosen.loss:.3g} % before the fit" if chosen.loss else "exact"
        return f"{figure(metric, original[metric])} > {cost} here; {loss}"
    if (why := structural(site)) is not None:
        return why
    if all(c.costs[metric] >= chosen.costs[metric] for c in options):
        what = "faster" if metric in TIMED else "smaller"
        return f"nothing measured is {what} here ({cost})"
    return f"the target leaves room for it ({cost})"


def decided(
    base: Plan,
    trace: Trace,
    sites: Sequence[Site],
    options: Sequence[Sequence[Candidate]],
    chosen: Sequence[int],
    originals: Sequence[Mapping[str, float]],
    probe: Probe,
) -> Plan:
    """``base`` with the decisions of ``sites`` replaced by the chosen candidates."""
    metric = _metric(probe)
    new: dict[str, Decision] = {d.site: d for d in base.decisions}
    for site, forms, index, original in zip(sites, options, chosen, originals, strict=True):
        form = forms[index]
        new[site.name] = dataclasses.replace(
            new[site.name],
            action="keep" if form.rule is None else "rewrite",
            rule=form.rule,
            rank=form.rank,
            norm="fold",
            reason=_reason(site, forms, form, original, metric),
        )
    decisions = tuple(new[d.site] for d in base.decisions)
    return costed(trace, dataclasses.replace(base, preset="measured", decisions=decisions))
