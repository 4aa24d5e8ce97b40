"""Reports for a person, the result first.

Lines and rich tables are returned; only the command line prints them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from rich.table import Table

from dsconvert.records import Conversion, Cost, Decision, Fit, LayerCost, Plan
from dsconvert.report.layout import Name, compact, listed, pairs, shortened
from dsconvert.report.text import amount, change, factor, percent, plain, uncounted

__all__ = [
    "Report",
    "amount",
    "conversion_report",
    "cost_report",
    "factor",
    "percent",
    "plan_report",
    "rank_report",
]

Report = list[Table | str]
"""What is printed, piece by piece."""
_NO_MACS = "unknown"
_RULE = 16
"""Characters of a rule's name in a table."""


def _what(decision: Decision) -> str:
    if decision.action == "rewrite":
        return f"{shortened(decision.rule or '', _RULE)} rank {decision.rank}"
    return decision.action


def _totals(params: tuple[int, int], macs: tuple[int | None, int | None]) -> list[list[str]]:
    """Rows of :func:`pairs`: before, after, and how many times fewer or more."""
    unknown = macs[0] is None and macs[1] is None
    return [
        ["parameters", change(*params), factor(*params)],
        ["MACs", _NO_MACS if unknown else change(*macs), factor(*macs)],
    ]


def _layers(decisions: Sequence[Decision], fits: Mapping[str, Fit]) -> Table:
    """One line a convolution."""
    numbers = ["parameters", "MACs", *(["error"] if fits else [])]
    table = compact("convolution", ["what"], numbers)
    for d in decisions:
        same = d.action == "keep"
        fit = fits.get(d.site)
        error = None if fit is None else fit.fitted if fit.fitted is not None else fit.svd
        table.add_row(
            Name(d.site),
            plain(_what(d)),
            amount(d.params_before) if same else change(d.params_before, d.params_after),
            amount(d.macs_before) if same else change(d.macs_before, d.macs_after),
            *(["" if error is None else percent(error)] if fits else []),
        )
    return table


def _reasons(decisions: Sequence[Decision]) -> list[str]:
    """Why what is not rewritten is not, one sentence a reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for d in decisions:
        if d.action != "rewrite":
            word = "kept" if d.action == "keep" else "removed"
            groups.setdefault((word, d.reason), []).append(d.site)
    return [f"{word}: {reason}: {listed(names)}" for (word, reason), names in groups.items()]


def _details(decisions: Sequence[Decision], fits: Mapping[str, Fit]) -> Table:
    """Where the fit started from, and the reason for each decision."""
    numbers = ["kernel lost", "error, SVD"] if fits else []
    table = compact("convolution", [], numbers)
    table.add_column("why", overflow="fold", ratio=1)
    for d in decisions:
        fit = fits.get(d.site)
        lost = [percent(fit.residual), percent(fit.svd)] if fit else ["", ""]
        table.add_row(Name(d.site), *(lost if fits else []), plain(d.reason))
    return table


def _sum(values: list[int | None]) -> int | None:
    """The total, None where a part is unknown."""
    known = [v for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None


def plan_report(plan: Plan, *, verbose: bool = False) -> Report:
    """What the plan saves, then every convolution, what happens to it and why."""
    rows = plan.decisions
    totals = _totals(
        (sum(d.params_before for d in rows), sum(d.params_after for d in rows)),
        (_sum([d.macs_before for d in rows]), _sum([d.macs_after for d in rows])),
    )
    report: Report = [
        f"plan {plan.preset!r} for {plan.model}, its convolutions alone:",
        *pairs(totals),
        *([plan.note] if plan.note else []),
    ]
    if plan.remove:
        report.append(f"removed whole: {', '.join(plan.remove)}")
    return [*report, "", _layers(rows, {}), "", *_why(rows, {}, verbose=verbose)]


def _why(decisions: Sequence[Decision], fits: Mapping[str, Fit], *, verbose: bool) -> Report:
    return [_details(decisions, fits), ""] if verbose else [*_reasons(decisions)]


def conversion_report(conversion: Conversion, title: str = "", *, verbose: bool = False) -> Report:
    """What came out, then a line a convolution, then what a person should know about it.

    "error" is the relative squared error of the convolution's output on held-out inputs, after the
    fit; "kernel lost" is the share of the kernel's energy outside the factors.
    """
    plan, before, after = conversion.plan, conversion.before, conversion.after
    fits = {f.site: f for f in conversion.fits}
    rows = _totals((before.params, after.params), (before.macs, after.macs))
    if conversion.psnr is not None:
        text = f"{conversion.psnr:.1f} dB"
        rows.append(["PSNR", text, "to the original's images, on held-out latents"])
    if conversion.seconds:
        stages = ", ".join(f"{k} {v:.1f}" for k, v in conversion.seconds.items())
        rows.append(["time", f"{sum(conversion.seconds.values()):.1f} s", f"({stages})"])
    report: Report = [title or f"{plan.model}, preset {plan.preset!r}", *pairs(rows)]
    if plan.note:
        report.append(plan.note)
    if not any(d.action == "rewrite" for d in plan.decisions):
        report.append("no convolution was rewritten")
    measured = {s: f for s, f in fits.items() if f.svd is not None or f.fitted is not None}
    report += ["", _layers(plan.decisions, measured), ""]
    report += _why(plan.decisions, fits, verbose=verbose)
    # What the plan removes is among the reasons already.
    idle = tuple(n for n in before.uncalled if not n.startswith(plan.remove))
    seen = dataclasses.replace(before, uncalled=idle) if plan.remove else before
    notes = [*conversion.notes, *uncounted(seen, after, verbose=verbose)]
    return [*report, *dict.fromkeys(notes)]


def cost_report(
    before: Cost, after: Cost | None = None, *, title: str = "Cost", verbose: bool = True
) -> Report:
    """Parameters and MACs of the whole, then of every layer with parameters.

    With two costs, before and after: layers of one name are on one line (a convolution and what
    replaced it).
    """
    notes = uncounted(before, after, verbose=verbose)
    if after is None:
        rows = [["parameters", amount(before.params)], ["MACs", _macs(before.macs)]]
        table = compact("layer", ["type"], ["parameters", "MACs"])
        for layer in _leaves(before):
            table.add_row(
                Name(layer.name), Name(layer.type), amount(layer.params), amount(layer.macs)
            )
        return [title, *pairs(rows), "", table, "", *notes]
    table = compact("layer", ["type"], ["parameters", "MACs"])
    other = {layer.name: layer for layer in after.layers}
    shown: set[str] = set()
    for layer in _leaves(before):
        shown.add(layer.name)
        new = other.get(layer.name)
        table.add_row(
            Name(layer.name),
            # What a conversion puts in place of a convolution is a Sequential: that says nothing.
            Name(layer.type if new is None or new.type == "Sequential" else new.type),
            change(layer.params, new.params if new else 0),
            change(layer.macs, _after(layer, new)),
        )
    _added(table, after, shown)
    totals = _totals((before.params, after.params), (before.macs, after.macs))
    return [title, *pairs(totals), "", table, "", *notes]


def _macs(value: int | None) -> str:
    return _NO_MACS if value is None else amount(value)


def _leaves(cost: Cost) -> list[LayerCost]:
    """The layers whose parameters are their own."""
    parents = {layer.name.rpartition(".")[0] for layer in cost.layers}
    return [c for c in cost.layers if c.name not in parents and c.params]


def _after(layer: LayerCost, new: LayerCost | None) -> int | None:
    """MACs of what replaced ``layer``; None where a parent that uses its weights is counted."""
    if new is None:
        return 0
    return None if not new.macs and layer.macs and new.params else new.macs


def _added(table: Table, after: Cost, shown: set[str]) -> None:
    """Layers that only the second model has, and that are no part of a line above."""
    for layer in _leaves(after):
        parts = layer.name.split(".")
        if any(".".join(parts[:n]) in shown for n in range(1, len(parts) + 1)):
            continue
        table.add_row(
            Name(layer.name), Name(layer.type), change(0, layer.params), change(0, layer.macs)
        )


def rank_report(
    before: Cost, rows: Sequence[tuple[int, int, int | None, int]], *, title: str
) -> Report:
    """One line a rank: ``(rank, parameters, MACs, convolutions rewritten)``, beside ``before``."""
    table = compact("rank", [], ["parameters", "", "MACs", "", "rewritten"])
    table.add_row("original", amount(before.params), "", amount(before.macs), "", "")
    for rank, params, macs, rewritten in rows:
        table.add_row(
            str(rank),
            amount(params),
            factor(before.params, params),
            amount(macs),
            factor(before.macs, macs),
            str(rewritten),
        )
    return [title, table]
