"""Tables for a person: rich renderables, returned; only the command line prints them."""

from __future__ import annotations

from rich.table import Table

from dsconvert.records import Conversion, Cost, Decision, Fit, Plan
from dsconvert.snapshot import SnapshotInfo


def amount(value: int | None, unit: str = "") -> str:
    """``12_345_678`` -> ``12.3 M``; a dash for None."""
    if value is None:
        return "-"
    for scale, prefix in ((10**9, "G"), (10**6, "M"), (10**3, "K")):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}{unit}".rstrip()
    return f"{value} {unit}".rstrip()


def ratio(before: int | None, after: int | None) -> str:
    """``5.1x`` fewer, or a dash."""
    if not before or not after:
        return "-"
    return f"{before / after:.2f}x"


def percent(value: float | None) -> str:
    """An error share as a percentage; a dash for None."""
    return "-" if value is None else f"{100 * value:.3g} %"


def _what(decision: Decision) -> str:
    if decision.action == "rewrite":
        return f"{decision.rule}, rank {decision.rank}"
    return decision.action


def _rows(table: Table, decisions: tuple[Decision, ...], fits: dict[str, Fit]) -> None:
    for d in decisions:
        fit = fits.get(d.site)
        same = d.action == "keep"
        table.add_row(
            d.site,
            _what(d),
            amount(d.params_before)
            if same
            else f"{amount(d.params_before)} > {amount(d.params_after)}",
            amount(d.macs_before) if same else f"{amount(d.macs_before)} > {amount(d.macs_after)}",
            percent(fit.residual) if fit else "",
            percent(fit.svd) if fit else "",
            percent(fit.fitted) if fit else "",
            d.reason,
        )


def _columns(title: str, *, caption: str | None = None) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("convolution", overflow="fold")
    table.add_column("what")
    for name in ("parameters", "MACs", "kernel lost", "error, SVD", "error, fitted"):
        table.add_column(name, justify="right")
    table.add_column("why", overflow="fold")
    return table


def plan_table(plan: Plan) -> Table:
    """Every convolution, what happens to it and why."""
    table = _columns(f"Plan {plan.preset!r} for {plan.model}", caption=plan.note)
    _rows(table, plan.decisions, {})
    return table


def conversion_table(conversion: Conversion, title: str = "") -> Table:
    """Before and after, convolution by convolution, with the held-out errors and totals.

    "kernel lost" is the share of the kernel's energy outside the factors; the two errors are
    relative squared errors of the convolution's output on held-out inputs.
    """
    plan = conversion.plan
    table = _columns(
        title or f"{plan.model}, preset {plan.preset!r}",
        caption="; ".join(conversion.notes) or None,
    )
    _rows(table, plan.decisions, {f.site: f for f in conversion.fits})
    before, after = conversion.before, conversion.after
    table.add_section()
    table.add_row(
        "whole model",
        "",
        f"{amount(before.params)} > {amount(after.params)}",
        f"{amount(before.macs)} > {amount(after.macs)}",
        "",
        "",
        "",
        f"{ratio(before.params, after.params)} fewer parameters, "
        f"{ratio(before.macs, after.macs)} fewer MACs",
        style="bold",
    )
    return table


def cost_table(before: Cost, after: Cost | None = None, *, title: str = "Cost") -> Table:
    """Parameters and MACs of every convolution and other layer with parameters."""
    notes = [n for n in (before.note, after.note if after else None) if n]
    if before.unsupported:
        ops = ", ".join(f"{n.removeprefix('aten::')} x{c}" for n, c in before.unsupported.items())
        notes.append(f"not counted by fvcore: {ops}")
    if before.uncalled:
        notes.append(f"never runs: {', '.join(before.uncalled)}")
    table = Table(title=title, caption="; ".join(notes) or None, caption_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("type")
    table.add_column("parameters", justify="right")
    table.add_column("MACs", justify="right")
    other = {layer.name: layer for layer in after.layers} if after else {}
    parents = {layer.name.rpartition(".")[0] for layer in before.layers}
    for layer in before.layers:
        if layer.name in parents or not layer.params:
            continue
        new = other.get(layer.name)
        table.add_row(
            layer.name,
            layer.type if new is None or new.type == layer.type else f"{layer.type} > {new.type}",
            _change(layer.params, new.params if new else (0 if after else None), after),
            _change(layer.macs, new.macs if new else (0 if after else None), after),
        )
    table.add_section()
    table.add_row(
        "whole model",
        "",
        _change(before.params, after.params if after else None, after),
        _change(before.macs, after.macs if after else None, after),
        style="bold",
    )
    if after is not None:
        table.add_row(
            "", "", ratio(before.params, after.params), ratio(before.macs, after.macs), style="bold"
        )
    return table


def _change(before: int | None, after: int | None, other: Cost | None) -> str:
    if other is None or before == after:
        return amount(before)
    return f"{amount(before)} > {amount(after)}"


def snapshot_table(info: SnapshotInfo) -> Table:
    """What is in a file."""
    table = Table(title=str(info.as_dict().get("path", "snapshot")), title_justify="left")
    table.add_column("what")
    table.add_column("value", overflow="fold")
    for key, value in info.as_dict().items():
        if key == "path":
            continue
        if isinstance(value, dict):
            for name, inner in value.items():
                table.add_row(f"{key}.{name}", str(inner))
        elif isinstance(value, list | tuple):
            for item in value:
                row = item if isinstance(item, dict) else {"": item}
                table.add_row(key, ", ".join(f"{k} {v}".strip() for k, v in row.items()))
        else:
            table.add_row(key, str(value))
    return table
