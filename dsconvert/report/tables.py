"""Tables for a person: rich renderables, returned; only the command line prints them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rich.table import Table

from dsconvert.records import Conversion, Cost, Decision, Fit, Plan
from dsconvert.report.text import amount, change, percent, plain, ratio, uncounted

__all__ = [
    "amount",
    "conversion_table",
    "cost_table",
    "percent",
    "plan_table",
    "rank_table",
    "ratio",
    "snapshot_table",
]


def _what(decision: Decision) -> str:
    if decision.action == "rewrite":
        return f"{decision.rule}, rank {decision.rank}"
    return decision.action


def _table(title: str, notes: list[str]) -> Table:
    return Table(
        title=plain(title, "table.title"),
        caption=plain("; ".join(notes), "table.caption") if notes else None,
        title_justify="left",
        caption_justify="left",
    )


def _decisions(title: str, notes: list[str], plan: Plan, fits: dict[str, Fit]) -> Table:
    table = _table(title, notes)
    table.add_column("convolution", overflow="fold")
    table.add_column("what")
    for name in ("parameters", "MACs", "kernel lost", "error, SVD", "error, fitted"):
        table.add_column(name, justify="right")
    table.add_column("why", overflow="fold")
    for d in plan.decisions:
        fit = fits.get(d.site)
        same = d.action == "keep"
        table.add_row(
            plain(d.site),
            plain(_what(d)),
            amount(d.params_before) if same else change(d.params_before, d.params_after),
            amount(d.macs_before) if same else change(d.macs_before, d.macs_after),
            percent(fit.residual) if fit else "",
            percent(fit.svd) if fit else "",
            percent(fit.fitted) if fit else "",
            plain(d.reason),
        )
    return table


def _sum(values: list[int | None]) -> int | None:
    """The total, None where a part is unknown."""
    known = [v for v in values if v is not None]
    return sum(known) if len(known) == len(values) else None


def plan_table(plan: Plan) -> Table:
    """Every convolution, what happens to it and why, with the totals of these convolutions."""
    title = f"Plan {plan.preset!r} for {plan.model}"
    notes = [plan.note] if plan.note else []
    if plan.remove:
        notes.append(f"removed, since they never run: {', '.join(plan.remove)}")
    table = _decisions(title, notes, plan, {})
    rows = plan.decisions
    _total(
        table,
        "these convolutions",
        (sum(d.params_before for d in rows), sum(d.params_after for d in rows)),
        (_sum([d.macs_before for d in rows]), _sum([d.macs_after for d in rows])),
    )
    return table


def _total(
    table: Table, what: str, params: tuple[int, int], macs: tuple[int | None, int | None]
) -> None:
    table.add_section()
    table.add_row(
        what,
        "",
        change(*params),
        change(*macs),
        "",
        "",
        "",
        f"{ratio(*params)} fewer parameters, {ratio(*macs)} fewer MACs",
        style="bold",
    )


def conversion_table(conversion: Conversion, title: str = "") -> Table:
    """Before and after, convolution by convolution, with the held-out errors and totals.

    "kernel lost" is the share of the kernel's energy outside the factors; the two errors are
    relative squared errors of the convolution's output on held-out inputs.
    """
    plan, before, after = conversion.plan, conversion.before, conversion.after
    notes = [*conversion.notes, *uncounted(before, after)]
    table = _decisions(
        title or f"{plan.model}, preset {plan.preset!r}",
        list(dict.fromkeys(notes)),
        plan,
        {f.site: f for f in conversion.fits},
    )
    _total(table, "whole model", (before.params, after.params), (before.macs, after.macs))
    return table


def cost_table(before: Cost, after: Cost | None = None, *, title: str = "Cost") -> Table:
    """Parameters and MACs of every convolution and other layer with parameters.

    With two costs, before and after: layers of one name are on one line (a convolution and what
    replaced it), and totals have their ratios.
    """
    table = _table(title, uncounted(before, after))
    table.add_column("layer", overflow="fold")
    table.add_column("type")
    table.add_column("parameters", justify="right")
    table.add_column("MACs", justify="right")
    other = {layer.name: layer for layer in after.layers} if after else {}
    parents = {layer.name.rpartition(".")[0] for layer in before.layers}
    shown: set[str] = set()
    for layer in before.layers:
        if layer.name in parents or not layer.params:
            continue
        shown.add(layer.name)
        new = other.get(layer.name)
        if after is None:
            table.add_row(
                plain(layer.name), plain(layer.type), amount(layer.params), amount(layer.macs)
            )
            continue
        kind = layer.type if new is None or new.type == layer.type else f"{layer.type} > {new.type}"
        table.add_row(
            plain(layer.name),
            plain(kind),
            change(layer.params, new.params if new else 0),
            change(layer.macs, new.macs if new else 0),
        )
    if after is not None:
        _added(table, after, shown)
    table.add_section()
    if after is None:
        table.add_row("whole model", "", amount(before.params), amount(before.macs), style="bold")
        return table
    table.add_row(
        "whole model",
        "",
        change(before.params, after.params),
        change(before.macs, after.macs),
        style="bold",
    )
    table.add_row(
        "times fewer",
        "",
        ratio(before.params, after.params),
        ratio(before.macs, after.macs),
        style="bold",
    )
    return table


def _added(table: Table, after: Cost, shown: set[str]) -> None:
    """Layers that only the second model has, and that are no part of a line above."""
    parents = {layer.name.rpartition(".")[0] for layer in after.layers}
    for layer in after.layers:
        parts = layer.name.split(".")
        covered = any(".".join(parts[:n]) in shown for n in range(1, len(parts) + 1))
        if covered or layer.name in parents or not layer.params:
            continue
        table.add_row(
            plain(layer.name), plain(layer.type), change(0, layer.params), change(0, layer.macs)
        )


class _Facts(Protocol):
    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        ...


def snapshot_table(info: _Facts) -> Table:
    """What is in a file. Names come from the file: they are shown, never obeyed."""
    facts = info.as_dict()
    table = _table(str(facts.get("path", "snapshot")), [])
    table.add_column("what")
    table.add_column("value", overflow="fold")
    for key, value in facts.items():
        if key == "path" or value is None:
            continue
        if isinstance(value, dict):
            for name, inner in value.items():
                table.add_row(plain(f"{key}.{name}"), plain(inner))
        elif isinstance(value, list | tuple):
            for item in value:
                row = item if isinstance(item, dict) else {"": item}
                table.add_row(
                    plain(key), plain(", ".join(f"{k} {v}".strip() for k, v in row.items()))
                )
        else:
            table.add_row(plain(key), plain(value))
    return table


def rank_table(
    before: Cost, rows: Sequence[tuple[int, int, int | None, int]], *, title: str
) -> Table:
    """One line a rank: ``(rank, parameters, MACs, convolutions rewritten)``, beside ``before``."""
    table = _table(title, [])
    for name in ("rank", "parameters", "MACs", "fewer parameters", "fewer MACs", "rewritten"):
        table.add_column(name, justify="right")
    table.add_row("original", amount(before.params), amount(before.macs), "", "", "")
    for rank, params, macs, rewritten in rows:
        table.add_row(
            str(rank),
            amount(params),
            amount(macs),
            ratio(before.params, params),
            ratio(before.macs, macs),
            str(rewritten),
        )
    return table
