"""``convert``: the main job."""

from __future__ import annotations

from pathlib import Path

from dsconvert.cli import targets
from dsconvert.cli.files import opened, read_plan
from dsconvert.cli.output import Bars, emit, say
from dsconvert.cli.parser import Call
from dsconvert.config.convert import ConvertJob
from dsconvert.errors import UsageError
from dsconvert.formats.convert_file import SnapshotConversion, convert_snapshot, plan_snapshot
from dsconvert.formats.registry import check_output, generators_in, save_file
from dsconvert.report.jsonable import conversion_dict, plan_dict
from dsconvert.report.tables import conversion_report, plan_report
from dsconvert.search import Clock
from dsconvert.util.files import check_target, whole_file


def _write_text(text: str, path: str, *, overwrite: bool) -> None:
    with whole_file(path, overwrite=overwrite) as beside:
        beside.write_text(text, encoding="utf-8")


def run(call: Call, *, clock: Clock | None = None) -> None:
    """Convert a file.

    Args:
        call: the command.
        clock: measures for ``--target``; None: this machine.

    Raises:
        MissedTargetError: a target is missed; nothing was written, unless ``--best-effort``.
        DsconvertError: bad input.
    """
    options: ConvertJob = call.options
    if options.out:
        check_target(options.out, overwrite=options.overwrite)
    if options.out and options.plan_only and Path(options.out).suffix.lower() not in (".json", ""):
        raise UsageError(f"--plan-only writes a plan, which is JSON: end {options.out} in .json.")
    chosen = read_plan(options.plan) if options.plan else None
    snap = opened(options.snapshot, options, drop=options.drop)
    if not options.plan_only and options.out:
        check_output(snap, options.out, overwrite=options.overwrite)
    measured = None
    if options.targets.target:
        with Bars(hidden=options.quiet) as bars:
            measured = targets.planned(snap, options, bars, clock=clock)
        chosen = measured.plan
    if options.plan_only:
        plan = plan_snapshot(snap, plan=chosen, **options.rewriting.keywords())
        if options.out:
            _write_text(plan.to_json() + "\n", options.out, overwrite=options.overwrite)
        if options.json:
            emit(plan_dict(plan) | targets.as_dict(measured))
        elif options.out:
            say(f"wrote {options.out}")
        else:
            say(*plan_report(plan, verbose=options.verbose))
            targets.show(measured)
        targets.own_up(measured, options)
        return
    with Bars(hidden=options.quiet) as bars:
        result = convert_snapshot(
            snap,
            plan=chosen,
            **options.rewriting.keywords(),
            **options.fitting.keywords(),
            progress=bars,
            generators=generators_in(snap, options.out),
        )
    if measured is not None:
        with Bars(hidden=options.quiet) as bars:
            bars("measure the result", 0, 1)
            measured = targets.checked(measured, snap, result.models, clock=clock)
        targets.insist(measured, options)
    made = save_file(snap, result.models, options.out, overwrite=options.overwrite)
    if options.json:
        entries = {k: conversion_dict(c) for k, c in result.conversions.items()}
        files = {"input": options.snapshot, "output": options.out}
        emit({**files, "converted": entries, **targets.as_dict(measured)})
        targets.own_up(measured, options)
        return
    name, main = result.main
    if not options.quiet:
        title = f"{name} of {options.snapshot}, preset {main.plan.preset}"
        say(*conversion_report(main, title, verbose=options.verbose))
        say(*_others(result))
        targets.show(measured)
    if made is None:
        say(f"wrote {options.out}")
    else:
        say(f"wrote {' and '.join(made.files)}: {name} alone, as {made.format}")
    targets.own_up(measured, options)


def _others(result: SnapshotConversion) -> list[str]:
    """A line for each generator of the file beside the main one."""
    lines: list[str] = []
    for key, conversion in list(result.conversions.items())[1:]:
        quality = "" if conversion.psnr is None else f", PSNR {conversion.psnr:.1f} dB"
        seconds = sum(conversion.seconds.values())
        same = "" if conversion.seconds else " (the same weights: fitted once)"
        lines.append(f"{key}: by the same plan{same}{quality}, {seconds:.1f} s")
    return lines
