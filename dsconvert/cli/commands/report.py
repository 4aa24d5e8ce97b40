"""Parameters and MACs, of one file or before and after."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from dsconvert.cli.output import emit, say
from dsconvert.pipeline import cost
from dsconvert.report.jsonable import cost_dict
from dsconvert.report.tables import cost_table
from dsconvert.snapshot import load_snapshot


def run(options: Namespace) -> None:
    """Count, and show the table."""
    before = cost(load_snapshot(options.snapshot).generator)
    after = cost(load_snapshot(options.other).generator) if options.other else None
    if options.json:
        data: dict[str, Any] = {"snapshot": options.snapshot, "cost": cost_dict(before)}
        if after is not None:
            data |= {"other": options.other, "other_cost": cost_dict(after)}
        emit(data)
        return
    names = options.snapshot + (f" > {options.other}" if options.other else "")
    say(cost_table(before, after, title=f"G_ema of {names}"))
