"""The main job."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from dsconvert.cli import targets
from dsconvert.cli.opening import opened
from dsconvert.cli.output import Bars, emit, say
from dsconvert.errors import PlanError
from dsconvert.files import convert_snapshot, plan_snapshot
from dsconvert.images import check_target, whole_file
from dsconvert.kinds import save_file
from dsconvert.records import Plan
from dsconvert.report.jsonable import conversion_dict, plan_dict
from dsconvert.report.tables import conversion_table, plan_table


def _write_text(text: str, path: str, *, overwrite: bool) -> None:
    with whole_file(path, overwrite=overwrite) as beside:
        beside.write_text(text, encoding="utf-8")


def _read_plan(path: str) -> Plan:
    try:
        return Plan.from_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"can't read the plan {path}: {error}.") from None


def run(options: Namespace) -> None:
    """Convert a file."""
    if options.out:
        check_target(options.out, overwrite=options.overwrite)
    chosen = _read_plan(options.plan) if options.plan else None
    snap = opened(options.snapshot, options, drop=tuple(options.drop))
    measured = None
    if options.target:
        with Bars(hidden=options.quiet) as bars:
            measured = targets.planned(snap, options, bars)
        chosen = measured.plan
    if options.plan_only:
        plan = plan_snapshot(
            snap,
            preset=options.preset,
            rank=options.rank,
            keep=tuple(options.keep),
            refit=tuple(options.refit),
            remove=tuple(options.remove),
            plan=chosen,
        )
        if options.out:
            _write_text(plan.to_json() + "\n", options.out, overwrite=options.overwrite)
        if options.json:
            emit(plan_dict(plan) | targets.as_dict(measured))
        elif not options.out:
            say(plan_table(plan))
            targets.show(measured)
        return
    with Bars(hidden=options.quiet) as bars:
        result = convert_snapshot(
            snap,
            preset=options.preset,
            rank=options.rank,
            keep=tuple(options.keep),
            refit=tuple(options.refit),
            remove=tuple(options.remove),
            plan=chosen,
            init=options.init,
            calibrate=options.calibrate,
            seed=options.seed,
            progress=bars,
        )
    if measured is not None:
        with Bars(hidden=options.quiet) as bars:
            bars("measure the result", 0, 1)
            measured = targets.checked(measured, snap, result.models)
    save_file(snap, result.models, options.out, overwrite=options.overwrite)
    if options.json:
        entries = {k: conversion_dict(c) for k, c in result.conversions.items()}
        files = {"input": options.snapshot, "output": options.out}
        emit({**files, "converted": entries, **targets.as_dict(measured)})
        return
    name, main = result.main
    say(conversion_table(main, f"{name} of {options.snapshot}, preset {main.plan.preset}"))
    for key, c in result.conversions.items():
        say(f"{key}: " + ", ".join(f"{k} {v:.1f} s" for k, v in c.seconds.items()))
    targets.show(measured)
    say(f"wrote {options.out}")
