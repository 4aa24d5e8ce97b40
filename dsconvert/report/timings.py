"""Measured times and memory as tables and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from dsconvert.bench import Limits, Measurement, Operation, Timing
from dsconvert.report.text import amount, plain, three_digits

__all__ = ["bytes_text", "measurement_dict", "measurement_table", "seconds_text"]


def seconds_text(value: float | None) -> str:
    """``0.0123`` -> ``12.3 ms``; a dash for None."""
    if value is None:
        return "-"
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if abs(value) >= 0.9995 * scale:
            return f"{three_digits(value / scale)} {unit}"
    return f"{three_digits(value / 1e-6)} us"


def bytes_text(value: float | None) -> str:
    """``1_048_576`` -> ``1.00 MiB``; a dash for None."""
    if value is None:
        return "-"
    mebi = value / 2**20
    return f"{three_digits(mebi)} MiB" if mebi < 9999.5 else f"{three_digits(mebi / 1024)} GiB"


def _times(before: float | None, after: float | None) -> str:
    return f"{before / after:.2f}x" if before and after else "-"


def _spread(timing: Timing) -> str:
    low, high = timing.quartiles
    return f"{seconds_text(timing.median)} ({_half_range(low, high, timing.median)})"


def _half_range(low: float, high: float, median: float) -> str:
    return f"±{50 * (high - low) / median:.0f} %" if median else "±0 %"


def measurement_table(
    measurements: Sequence[Measurement], *, title: str = "Measured", notes: Sequence[str] = ()
) -> Table:
    """One block a model; the ratios are to the first one (how many times less)."""
    every = [*notes, *(n for m in measurements for n in m.notes)]
    table = Table(
        title=plain(title, "table.title"),
        caption=plain("; ".join(dict.fromkeys(every)), "table.caption") if every else None,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("", overflow="fold")
    reference = measurements[0]
    for index, m in enumerate(measurements):
        table.add_column(plain(m.name), justify="right")
        if index:
            table.add_column("less", justify="right")
    _row(table, "parameters", [(float(m.params), amount(m.params)) for m in measurements])
    for operation in sorted(reference.times):
        _row(
            table,
            str(operation),
            [(m.times[operation].median, _spread(m.times[operation])) for m in measurements],
        )
    for operation in sorted(reference.peaks):
        peaks = [m.peaks.get(operation) for m in measurements]
        _row(table, f"peak memory, {operation}", [(p, bytes_text(p)) for p in peaks])
    for operation in sorted(reference.kept):
        kept = [m.kept.get(operation) for m in measurements]
        _row(
            table,
            f"activations kept for backward, batch {operation.batch}",
            [(k, bytes_text(k)) for k in kept],
        )
    return table


def _row(table: Table, what: str, cells: Sequence[tuple[float | None, str]]) -> None:
    first, text = cells[0]
    row = [what, text]
    for value, shown in cells[1:]:
        row += [shown, _times(first, value)]
    table.add_row(*row)


def _key(operation: Operation) -> str:
    return f"{operation.kind}_batch_{operation.batch}"


def _timing_dict(timing: Timing) -> dict[str, Any]:
    low, high = timing.quartiles
    return {
        "median_s": timing.median,
        "quartiles_s": [low, high],
        "runs": len(timing.seconds),
        "seconds": list(timing.seconds),
    }


def measurement_dict(m: Measurement) -> dict[str, Any]:
    """As JSON: seconds and bytes, keyed by operation."""
    return {
        "name": m.name,
        "params": m.params,
        "times": {_key(o): _timing_dict(t) for o, t in m.times.items()},
        "peak_bytes": {_key(o): v for o, v in m.peaks.items()},
        "kept_for_backward_bytes": {_key(o): v for o, v in m.kept.items()},
        "notes": list(m.notes),
    }


def limits_dict(limits: Limits) -> dict[str, float]:
    """The machine's own limits."""
    return {
        "gmac_per_s": limits.macs_per_second / 1e9,
        "gb_per_s": limits.bytes_per_second / 1e9,
    }
