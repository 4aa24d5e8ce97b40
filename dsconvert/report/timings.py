"""Measured times and memory as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from dsconvert.bench import Limits, Measurement, Operation, Timing
from dsconvert.report.layout import Name, compact
from dsconvert.report.text import plain
from dsconvert.util.numbers import amount, bytes_text, factor, seconds_text


def _spread(timing: Timing) -> str:
    low, high = timing.quartiles
    return f"{seconds_text(timing.median)} ({_half_range(low, high, timing.median)})"


def _half_range(low: float, high: float, median: float) -> str:
    return f"±{50 * (high - low) / median:.0f} %" if median else "±0 %"


def measurement_report(
    measurements: Sequence[Measurement], *, title: str = "measured", notes: Sequence[str] = ()
) -> list[Table | str]:
    """Report a block for each quantity, with a line for each model and factors to the first."""
    table = compact("", [], ["", "", ""])
    reference = measurements[0]
    _block(table, "parameters", [(m.name, float(m.params), amount(m.params)) for m in measurements])
    for operation in sorted(reference.times):
        _block(
            table,
            str(operation),
            [
                (m.name, m.times[operation].median, _spread(m.times[operation]))
                for m in measurements
            ],
            words=("faster", "slower"),
        )
    for operation in sorted(reference.peaks):
        peaks = [(m.name, m.peaks.get(operation)) for m in measurements]
        _block(table, f"peak memory, {operation}", _memory(peaks), words=("less", "more"))
    for operation in sorted(reference.kept):
        kept = [(m.name, m.kept.get(operation)) for m in measurements]
        what = f"activations kept for backward, batch {operation.batch}"
        _block(table, what, _memory(kept), words=("less", "more"))
    every = [*notes, *(n for m in measurements for n in m.notes)]
    factors = headline(measurements) if len(measurements) > 1 else []
    return [title, *factors, "", table, "", *dict.fromkeys(every)]


def headline(measurements: Sequence[Measurement]) -> list[str]:
    """Return one line for each further model: its factors in time to the first.

    A model alone has one line, with its times.
    """
    reference, *others = measurements
    lines: list[str] = []
    if not others:
        times = {str(o): seconds_text(reference.times[o].median) for o in sorted(reference.times)}
        lines.append(f"{reference.name}: {', '.join(f'{t} ({o})' for o, t in times.items())}")
    for m in others:
        parts = [
            f"{factor(reference.times[o].median, m.times[o].median, less='faster', more='slower')}"
            f" ({o})"
            for o in sorted(reference.times)
        ]
        lines.append(f"{m.name}: {', '.join(parts)}")
    return lines


_Cell = tuple[str, float | None, str]
"""A model's name, its value, and the value as text."""


def _memory(values: Sequence[tuple[str, float | None]]) -> list[_Cell]:
    return [(name, value, bytes_text(value)) for name, value in values]


def _block(
    table: Table, what: str, cells: Sequence[_Cell], *, words: tuple[str, str] = ("fewer", "more")
) -> None:
    """A heading and a line a model; one line alone where there is one model."""
    first = cells[0][1]
    if len(cells) == 1:
        table.add_row(what, *_columns(cells[0][2]), "")
        return
    table.add_row(plain(what, "bold"), "", "", "")
    for index, (name, value, shown) in enumerate(cells):
        times = factor(first, value, less=words[0], more=words[1]) if index else ""
        table.add_row(Name(f"  {name}"), *_columns(shown), times)


def _columns(shown: str) -> tuple[str, str]:
    """Split a value and its spread into two columns."""
    value, mark, spread = shown.partition(" (")
    return value, f"{mark}{spread}".strip()


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
    """Return a measurement for JSON: seconds and bytes by operation."""
    return {
        "name": m.name,
        "params": m.params,
        "times": {_key(o): _timing_dict(t) for o, t in m.times.items()},
        "peak_bytes": {_key(o): v for o, v in m.peaks.items()},
        "kept_for_backward_bytes": {_key(o): v for o, v in m.kept.items()},
        "notes": list(m.notes),
    }


def limits_dict(limits: Limits) -> dict[str, float]:
    """Return the limits of the machine for JSON."""
    return {
        "gmac_per_s": limits.macs_per_second / 1e9,
        "gb_per_s": limits.bytes_per_second / 1e9,
    }
