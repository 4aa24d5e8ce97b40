"""Reports for people as lines and rich tables, with the result first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from rich.table import Table

from dsconvert.records import (
    Conversion,
    Cost,
    Decision,
    Fit,
    LayerCost,
    Plan,
    Polish,
    PolishEnd,
    Quality,
    Width,
)
from dsconvert.report.layout import Name, compact, listed, pairs, shortened
from dsconvert.report.text import plain, uncounted
from dsconvert.util.numbers import amount, change, counted, factor, percent

Report = list[Table | str]
"""The parts of a report in order."""
_NO_MACS = "unknown"
_RULE = 16
"""The most characters of a rule's name in a table."""


def _decision_text(decision: Decision) -> str:
    if decision.action == "rewrite":
        return f"{shortened(decision.rule or '', _RULE)} rank {decision.rank}"
    return decision.action


def _totals(params: tuple[int, int], macs: tuple[int | None, int | None]) -> list[list[str]]:
    """Return rows of :func:`pairs`: before, after, and the factor between them."""
    unknown = macs[0] is None and macs[1] is None
    return [
        ["parameters", change(*params), factor(*params)],
        ["MACs", _NO_MACS if unknown else change(*macs), factor(*macs)],
    ]


def _layers(decisions: Sequence[Decision], fits: Mapping[str, Fit]) -> Table:
    """Return a table with one line for each convolution."""
    numbers = ["parameters", "MACs", *(["error"] if fits else [])]
    table = compact("convolution", ["what"], numbers)
    for d in decisions:
        same = (d.params_before, d.macs_before) == (d.params_after, d.macs_after)
        fit = fits.get(d.site)
        error = None if fit is None else fit.fitted if fit.fitted is not None else fit.svd
        table.add_row(
            Name(d.site),
            plain(_decision_text(d)),
            amount(d.params_before) if same else change(d.params_before, d.params_after),
            amount(d.macs_before) if same else change(d.macs_before, d.macs_after),
            *(["" if error is None else percent(error)] if fits else []),
        )
    return table


def _widths(widths: Sequence[Width]) -> Report:
    """Return a table of the maps that get narrower, or nothing."""
    if not widths:
        return []
    table = compact("map", [], ["channels", "kept"])
    table.add_column("why", overflow="fold", ratio=1)
    for w in widths:
        table.add_row(Name(w.group), str(w.channels), str(w.kept), plain(w.reason))
    return [table, ""]


def _reasons(decisions: Sequence[Decision]) -> list[str]:
    """Return a sentence for each reason why convolutions are not rewritten."""
    groups: dict[tuple[str, str], list[str]] = {}
    for d in decisions:
        if d.action != "rewrite":
            word = "kept" if d.action == "keep" else "removed"
            groups.setdefault((word, d.reason), []).append(d.site)
    return [f"{word}: {reason}: {listed(names)}" for (word, reason), names in groups.items()]


def _details(decisions: Sequence[Decision], fits: Mapping[str, Fit]) -> Table:
    """Return a table of the fit's start and the reason for each decision."""
    numbers = ["kernel lost", "error, SVD"] if fits else []
    table = compact("convolution", [], numbers)
    table.add_column("why", overflow="fold", ratio=1)
    for d in decisions:
        fit = fits.get(d.site)
        lost = [percent(fit.residual), percent(fit.svd)] if fit else ["", ""]
        table.add_row(Name(d.site), *(lost if fits else []), plain(d.reason))
    return table


def _sum(values: list[int | None]) -> int | None:
    """Return the sum; None if a part is unknown."""
    known = [v for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None


def plan_report(plan: Plan, *, verbose: bool = False) -> Report:
    """Report a plan: its totals, then each convolution with its decision and reason."""
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
    report += ["", _layers(rows, {}), "", *_widths(plan.widths)]
    return [*report, *_why(rows, {}, verbose=verbose)]


def _why(decisions: Sequence[Decision], fits: Mapping[str, Fit], *, verbose: bool) -> Report:
    return [_details(decisions, fits), ""] if verbose else [*_reasons(decisions)]


def conversion_report(conversion: Conversion, title: str = "", *, verbose: bool = False) -> Report:
    """Report a conversion: its totals, then each convolution, then notes.

    "error" is the relative squared error of the convolution's output on held-out inputs after the
    fit; "kernel lost" is the share of the kernel's energy that the factors lack.
    """
    plan, before, after = conversion.plan, conversion.before, conversion.after
    fits = {f.site: f for f in conversion.fits}
    rows = _totals((before.params, after.params), (before.macs, after.macs))
    if conversion.psnr is not None:
        text = f"{conversion.psnr:.1f} dB"
        rows.append(["PSNR", text, "to the original's images, on held-out latents"])
    if conversion.psnr is None and conversion.output_error is not None:
        about = "of the output's variance, on held-out inputs"
        rows.append(["error", percent(conversion.output_error), about])
    if conversion.stft is not None:
        about = "to the original's sounds, on held-out inputs (0: equal)"
        rows.append(["STFT distance", f"{conversion.stft:.3f}", about])
    if conversion.polish is not None:
        rows.append(["polish", *_polish_cells(conversion.polish)])
    if conversion.quality is not None:
        rows.append(quality_cells(conversion.quality))
    if conversion.seconds:
        stages = ", ".join(f"{k} {v:.1f}" for k, v in conversion.seconds.items())
        rows.append(["time", f"{sum(conversion.seconds.values()):.1f} s", f"({stages})"])
    report: Report = [title or f"{plan.model}, preset {plan.preset!r}", *pairs(rows)]
    if plan.note:
        report.append(plan.note)
    if not plan.changes:
        report.append("no convolution was rewritten")
    measured = {s: f for s, f in fits.items() if f.svd is not None or f.fitted is not None}
    report += ["", _layers(plan.decisions, measured), "", *_widths(plan.widths)]
    report += _why(plan.decisions, fits, verbose=verbose)
    # The reasons already name the modules that the plan removes.
    idle = tuple(n for n in before.uncalled if not n.startswith(plan.remove))
    seen = dataclasses.replace(before, uncalled=idle) if plan.remove else before
    warnings = [f"warning: {w}" for w in conversion.warnings]
    said = [*warnings, *conversion.undone, *conversion.notes]
    notes = [*said, *uncounted(seen, after, verbose=verbose)]
    return [*report, *dict.fromkeys(notes)]


def quality_cells(quality: Quality) -> list[str]:
    """Return a row of :func:`pairs`: the measure, its value, and a text about it."""
    low, high = quality.psnr_interval
    psnr = f"PSNR {quality.psnr:.1f} dB ({low:.1f} to {high:.1f})"
    images = f"{quality.samples} images, measured in {quality.seconds:.0f} s"
    if quality.ratio is None or quality.ratio_interval is None:
        return ["quality", psnr, images]
    low, high = quality.ratio_interval
    text = f"({low:.2f} to {high:.2f}), {images}; {psnr}"
    return ["FD-lite0", f"{quality.ratio:.2f}x the floor", text]


_ENDS: dict[PolishEnd, str] = {
    "steps": "all steps made",
    "minutes": "the time was up",
    "settled": "the distance no longer fell",
    "exact": "nothing to improve",
    "interrupted": "interrupted, the best so far is kept",
    "diverged": "the loss was not finite, the best so far is kept",
    "undifferentiable": "the model has no gradients, the fit stays",
}


def _polish_cells(polish: Polish) -> list[str]:
    """Return the steps of a polish, and a text about it."""
    text = _ENDS[polish.ended]
    before, after = polish.distance_before, polish.distance_after
    if before is not None and after is not None:
        text = f"held-out distance {before:.4g} -> {after:.4g}; {text}"
    if polish.psnr_before is not None and polish.psnr_after is not None:
        text = f"PSNR {polish.psnr_before:.1f} -> {polish.psnr_after:.1f} dB, {text}"
    if polish.repeat is not None:
        text += f"; the same again: --polish-steps {polish.repeat}"
    return [counted(polish.steps, "step"), f"({text})"]


def cost_report(
    before: Cost, after: Cost | None = None, *, title: str = "Cost", verbose: bool = True
) -> Report:
    """Report parameters and MACs of the model, then of every layer with parameters.

    With two costs, layers of the same name share a line (a convolution and its replacement).
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
            # A conversion replaces a convolution by a Sequential, whose name tells nothing.
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
    """Return the layers that hold parameters themselves."""
    parents = {layer.name.rpartition(".")[0] for layer in cost.layers}
    return [c for c in cost.layers if c.name not in parents and c.params]


def _after(layer: LayerCost, new: LayerCost | None) -> int | None:
    """Return the MACs of the replacement; None if a parent that uses its weights has them."""
    if new is None:
        return 0
    return None if not new.macs and layer.macs and new.params else new.macs


def _added(table: Table, after: Cost, shown: set[str]) -> None:
    """Add the layers of the second model alone that no line above includes."""
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
    """Report ``(rank, parameters, MACs, convolutions rewritten)`` of each rank, and ``before``."""
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
