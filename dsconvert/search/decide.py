"""Turn the chosen candidates into a plan's decisions, with the reason for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dsconvert.core.presets import structural
from dsconvert.core.rewrite import costed
from dsconvert.records import Decision, Plan, Site, Sites
from dsconvert.search.records import TIMED, Candidate, Probe
from dsconvert.search.units import figure


def _metric(probe: Probe) -> str:
    return next((m for m in probe.metrics if m in TIMED), probe.metrics[0])


def as_it_is(base: Plan, whole: Sites, reason: str) -> Plan:
    """Return the plan that changes nothing: no rewrite, no folded norm, no removed module."""
    decisions = tuple(
        dataclasses.replace(
            d, action="keep", rule=None, rank=None, norm="keep", reason=reason,
            params_after=d.params_before, macs_after=d.macs_before,
        )
        for d in base.decisions
    )  # fmt: skip
    plan = dataclasses.replace(base, preset="measured", decisions=decisions, remove=(), widths=())
    return costed(whole, plan)


def changes_nothing(plan: Plan) -> bool:
    """Return whether a plan leaves the model as it is."""
    return (
        not plan.remove
        and not plan.widths
        and all(d.action == "keep" and d.norm == "keep" for d in plan.decisions)
    )


def macs_of(plan: Plan) -> tuple[float, float] | None:
    """Return the MACs of the plan's convolutions before and after; None where they are unknown."""
    if any(d.macs_before is None or d.macs_after is None for d in plan.decisions):
        return None
    before = sum(d.macs_before or 0 for d in plan.decisions)
    return float(before), float(sum(d.macs_after or 0 for d in plan.decisions))


def _reason(
    site: Site, options: Sequence[Candidate], chosen: Candidate, original: Candidate, metric: str
) -> str:
    cost = figure(metric, chosen.costs[metric])
    if chosen.rule is not None:
        loss = f"error {100 * chosen.loss:.3g} % before the fit" if chosen.loss else "exact"
        return f"{figure(metric, original.costs[metric])} > {cost} here; {loss}"
    if (why := structural(site)) is not None:
        return why
    if all(c.costs[metric] >= chosen.costs[metric] for c in options):
        what = "faster" if metric in TIMED else "smaller"
        return f"nothing measured is {what} here ({cost})"
    return f"the target leaves room for it ({cost})"


def decided(
    base: Plan,
    unnarrowed: Sites,
    whole: Sites,
    sites: Sequence[Site],
    options: Sequence[Sequence[Candidate]],
    chosen: Sequence[int],
    originals: Sequence[Candidate],
    probe: Probe,
) -> Plan:
    """Return ``base`` with the chosen candidates as the decisions of ``sites``.

    Args:
        base: the plan to complete.
        unnarrowed: the convolutions of the original.
        whole: those at the widths of the plan.
        sites: those that are decided.
        options: the forms of each.
        chosen: their indices.
        originals: each convolution as it is.
        probe: of the measurement.
    """
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
    plan = dataclasses.replace(base, preset="measured", decisions=decisions)
    return costed(whole, plan, original=unnarrowed)
