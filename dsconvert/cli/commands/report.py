"""Parameters and MACs, of one file or before and after."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from dsconvert.cli.opening import opened
from dsconvert.cli.output import emit, say
from dsconvert.kinds import Opened, inputs_of
from dsconvert.pipeline import cost
from dsconvert.records import Cost
from dsconvert.report.jsonable import cost_dict
from dsconvert.report.tables import cost_table


def _counted(file: Opened) -> Cost:
    return cost(file.generator, inputs=inputs_of(file))


def run(options: Namespace) -> None:
    """Count, and show the table."""
    file = opened(options.snapshot, options)
    before = _counted(file)
    after = _counted(opened(options.other, options)) if options.other else None
    if options.json:
        data: dict[str, Any] = {"snapshot": options.snapshot, "cost": cost_dict(before)}
        if after is not None:
            data |= {"other": options.other, "other_cost": cost_dict(after)}
        emit(data)
        return
    names = options.snapshot + (f" > {options.other}" if options.other else "")
    say(cost_table(before, after, title=f"{file.generators[0]} of {names}"))
