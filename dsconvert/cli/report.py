"""``inspect`` and ``report``: the contents of a file, and its cost before and after."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsconvert.cli import sensitivity
from dsconvert.cli.files import opened, source_of
from dsconvert.cli.output import Bars, emit, say, say_whole
from dsconvert.cli.parser import Call
from dsconvert.config.files import InspectJob, ReportJob
from dsconvert.core.pipeline import cost
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.registry import inspect_file
from dsconvert.records import Cost
from dsconvert.report.inspection import inspection
from dsconvert.report.jsonable import cost_dict
from dsconvert.report.tables import cost_report, rank_report
from dsconvert.search.ranks import rank_costs
from dsconvert.util.files import check_target, whole_file


def inspect(call: Call) -> None:
    """Show the contents of the file, without running anything in it."""
    options: InspectJob = call.options
    info = inspect_file(options.snapshot, module=source_of(options.source))
    if options.json:
        emit(info.as_dict())
    else:
        say(*inspection(info.as_dict(), verbose=options.verbose))


def _counted(file: GeneratorFile) -> Cost:
    return cost(file.generator, inputs=file.inputs())


def report(call: Call) -> None:
    """Count, and show the table."""
    options: ReportJob = call.options
    if options.out:
        check_target(options.out, overwrite=options.overwrite)
    with Bars(hidden=options.quiet) as bars:
        bars("count", 0, 1)
        file = opened(options.snapshot, options)
        before = _counted(file)
        after = _counted(opened(options.other, options)) if options.other else None
        ranks = (
            rank_costs(file.generator, options.ranks, inputs=file.inputs()) if options.ranks else ()
        )
        trials = sensitivity.measured(file, bars) if options.sensitivity else None
    if trials is not None and options.out:
        with whole_file(options.out, overwrite=options.overwrite) as beside:
            picture = sensitivity.picture(trials, Path(options.snapshot).name)
            beside.write_text(picture, encoding="utf-8")
    if options.json:
        data: dict[str, Any] = {"snapshot": options.snapshot, "cost": cost_dict(before)}
        if after is not None:
            data |= {"other": options.other, "other_cost": cost_dict(after)}
        if ranks:
            data["ranks"] = [asdict(row) for row in ranks]
        if trials is not None:
            data["sensitivity"] = sensitivity.as_dict(trials)
        emit(data)
        return
    names = options.snapshot + (f" > {options.other}" if options.other else "")
    title = f"{file.generators[0]} of {names}"
    lines = list(cost_report(before, after, title=title, verbose=options.verbose))
    if ranks:
        rows = [(r.rank, r.params, r.macs, r.rewritten) for r in ranks]
        lines += ["", *rank_report(before, rows, title="the whole generator, by rank")]
    if trials is not None:
        lines += ["", *sensitivity.tables(trials, verbose=options.verbose)]
    # The first part has the totals; --quiet prints the last line of it.
    say(*(lines[: lines.index("")] if options.quiet else lines), quiet=options.quiet)
    if options.out:
        say_whole(f"wrote {options.out}")
