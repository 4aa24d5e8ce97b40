"""Parameters and MACs, of one file or before and after."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from typing import Any

from dsconvert.cli.opening import opened
from dsconvert.cli.output import Bars, emit, say
from dsconvert.core.pipeline import cost
from dsconvert.formats.base import GeneratorFile
from dsconvert.records import Cost
from dsconvert.report.jsonable import cost_dict
from dsconvert.report.tables import cost_report, rank_report
from dsconvert.search.ranks import rank_costs


def _counted(file: GeneratorFile) -> Cost:
    return cost(file.generator, inputs=file.inputs())


def run(options: Namespace) -> None:
    """Count, and show the table."""
    with Bars(hidden=options.quiet) as bars:
        bars("count", 0, 1)
        file = opened(options.snapshot, options)
        before = _counted(file)
        after = _counted(opened(options.other, options)) if options.other else None
        ranks = (
            rank_costs(file.generator, options.ranks, inputs=file.inputs()) if options.ranks else ()
        )
    if options.json:
        data: dict[str, Any] = {"snapshot": options.snapshot, "cost": cost_dict(before)}
        if after is not None:
            data |= {"other": options.other, "other_cost": cost_dict(after)}
        if ranks:
            data["ranks"] = [asdict(row) for row in ranks]
        emit(data)
        return
    names = options.snapshot + (f" > {options.other}" if options.other else "")
    title = f"{file.generators[0]} of {names}"
    lines = list(cost_report(before, after, title=title, verbose=options.verbose))
    if ranks:
        rows = [(r.rank, r.params, r.macs, r.rewritten) for r in ranks]
        lines += ["", *rank_report(before, rows, title="the whole generator, by rank")]
    # The first part has the totals; the last of these is what --quiet leaves.
    say(*(lines[: lines.index("")] if options.quiet else lines), quiet=options.quiet)
