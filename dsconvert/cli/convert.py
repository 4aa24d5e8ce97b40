"""``convert``: the main job."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import torch

from dsconvert.cli import measuring, promises, targets
from dsconvert.cli.files import opened, read_plan
from dsconvert.cli.output import Bars, emit, say, say_whole
from dsconvert.cli.parser import Call
from dsconvert.cli.stopping import Stopped
from dsconvert.config.convert import ConvertJob, Polishing
from dsconvert.data.picture_inputs import PictureInputs
from dsconvert.errors import MissedTargetError, PolishError, UsageError
from dsconvert.formats.base import GeneratorFile
from dsconvert.formats.convert_file import FileConversion, convert_file, plan_file
from dsconvert.formats.save_file import check_output, generators_in, save_file
from dsconvert.records import Plan, PolishForecast
from dsconvert.report.jsonable import conversion_dict, plan_dict
from dsconvert.report.tables import conversion_report, plan_report
from dsconvert.search import Clock, MeasuredPlan
from dsconvert.util.devices import for_work
from dsconvert.util.files import check_target, whole_file
from dsconvert.util.numbers import counted

GPU_MINUTES = 3.0
"""Of the polish by default, where a GPU runs it."""


def run(call: Call, *, clock: Clock | None = None) -> None:
    """Convert a file, or plan its conversion.

    Args:
        call: the command.
        clock: measures for ``--target``; None: this machine.

    Raises:
        MissedTargetError: a target is missed; nothing was written, unless ``--best-effort``.
        DsconvertError: bad input.
    """
    options: ConvertJob = call.options
    out = options.out or ""
    if out:
        check_target(out, overwrite=options.overwrite)
    if out and options.plan_only and Path(out).suffix.lower() not in (".json", ""):
        raise UsageError(f"--plan-only writes a plan, which is JSON: end {out} in .json.")
    chosen = read_plan(options.plan) if options.plan else None
    promises.check(options)
    device = for_work(options.device)
    file = opened(options.snapshot, options, drop=options.drop)
    if not options.plan_only:
        check_output(file, out, overwrite=options.overwrite)
        measuring.prepared(file, options, device)
    measured = None
    if options.targets.quality:
        _promised(call, file, out, clock, device=device)
        return
    if options.targets.target:
        with Bars(hidden=options.quiet) as bars:
            measured = targets.planned(file, options, bars, clock=clock)
        chosen = measured.plan
    asked = "--polish" in call.typed or "--polish-steps" in call.typed
    polishing = options.polishing if asked else _usual(options, device)
    if options.plan_only:
        _plan(file, chosen, options, polishing, measured, device=device)
        targets.report_missed(measured, options)
    else:
        _convert(file, chosen, out, options, polishing, measured, clock, device=device, asked=asked)


def _promised(
    call: Call, file: GeneratorFile, out: str, clock: Clock | None, *, device: torch.device
) -> None:
    """Search for the plan of a promised quality; write its result, or the plan alone."""
    options: ConvertJob = call.options
    asked = "--polish" in call.typed or "--polish-steps" in call.typed
    polishing = options.polishing if asked else _usual(options, device)
    with Bars(hidden=options.quiet) as bars:
        result = promises.kept(file, options, polishing, bars, device=device, clock=clock)
        conversion = result.found.conversion
        if options.plan_only:
            made = FileConversion(conversions={file.generators[0]: conversion})
        else:
            made = convert_file(
                file, plan=conversion.plan, **options.fitting.keywords(), progress=bars,
                generators=generators_in(file, out), device=device,
                made={file.generators[0]: conversion},
            )  # fmt: skip
    if options.plan_only and out:
        with whole_file(out, overwrite=options.overwrite) as beside:
            beside.write_text(conversion.plan.to_json() + "\n", encoding="utf-8")
    elif not options.plan_only:
        save_file(file, made.models, out, overwrite=options.overwrite)
    if options.json:
        entries = {k: conversion_dict(c) for k, c in made.conversions.items()}
        emit({"input": options.snapshot, "output": out, "converted": entries,
              **promises.as_dict(result)})  # fmt: skip
    else:
        if not options.quiet:
            title = f"{file.generators[0]} of {options.snapshot}, {result.found.chosen.name}"
            say(*conversion_report(conversion, title, verbose=options.verbose))
            promises.show(result)
        say_whole(f"wrote {out}" if out else "nothing was written (--plan-only)")
    if result.missed is not None:
        raise MissedTargetError(f"{result.missed} The nearest is written (--best-effort).")


def _usual(options: ConvertJob, device: torch.device) -> Polishing:
    """Return the polish of a command that names none."""
    if options.fitting.init != "fit" or options.fitting.calibrate == 0:
        return Polishing(polish=0)
    return options.polishing if device.type == "cpu" else Polishing(polish=GPU_MINUTES)


def _plan(
    file: GeneratorFile,
    chosen: Plan | None,
    options: ConvertJob,
    polishing: Polishing,
    measured: MeasuredPlan | None,
    *,
    device: torch.device,
) -> None:
    """Show the plan, or write it."""
    with Bars(hidden=options.quiet) as bars:
        plan = plan_file(
            file,
            plan=chosen,
            **options.rewriting.keywords(),
            **options.fitting.keywords(),
            polished=polishing.polish > 0 or polishing.polish_steps is not None,
            progress=bars,
            device=device,
        )
    if options.out:
        with whole_file(options.out, overwrite=options.overwrite) as beside:
            beside.write_text(plan.to_json() + "\n", encoding="utf-8")
    if options.json:
        emit(plan_dict(plan) | targets.as_dict(measured))
    elif options.out:
        say_whole(f"wrote {options.out}")
    else:
        say(*plan_report(plan, verbose=options.verbose))
        targets.show(measured)


def _convert(
    file: GeneratorFile,
    chosen: Plan | None,
    out: str,
    options: ConvertJob,
    polishing: Polishing,
    measured: MeasuredPlan | None,
    clock: Clock | None,
    *,
    device: torch.device,
    asked: bool,
) -> None:
    """Convert every generator of the file, and write the result to ``out``.

    Args:
        file: the opened file.
        chosen: the plan, if it is the user's own or a measured one.
        out: where to write.
        options: of the command.
        polishing: its polish; none by default where nothing is fitted.
        measured: the plan of ``--target``.
        clock: as for :func:`run`.
        device: where to fit and polish.
        asked: whether the user typed that there is to be a polish; one by default is left out
            where it makes no sense.
    """
    with Bars(hidden=options.quiet) as bars:
        given = file.inputs()
        if isinstance(given, PictureInputs) and given.skipped:
            bars.note(
                f"{counted(len(given.skipped), 'image')} of {given.path} left out: "
                f"{given.skipped[0]}{', ...' if len(given.skipped) > 1 else ''}"
            )
        make = functools.partial(
            convert_file,
            file,
            plan=chosen,
            **options.rewriting.keywords(),
            **options.fitting.keywords(),
            forecast=lambda expected: _announce(expected, polishing, bars),
            progress=bars,
            generators=generators_in(file, out),
            device=device,
        )
        try:
            result = make(**polishing.keywords())
        except PolishError as error:
            if asked:
                raise
            bars.note(f"not polished: {error}")
            result = make()
    if measured is not None:
        with Bars(hidden=options.quiet) as bars:
            bars("measure the result", 0, 1)
            measured = targets.checked(measured, file, result.models, clock=clock)
        targets.require_met(measured, options)
    made = save_file(file, result.models, out, overwrite=options.overwrite)
    with Bars(hidden=options.quiet) as bars:
        result = measuring.measured(file, result, options, device, bars)
    if options.json:
        entries = {k: conversion_dict(c) for k, c in result.conversions.items()}
        files = {"input": options.snapshot, "output": out}
        emit({**files, "converted": entries, **targets.as_dict(measured)})
    else:
        name, main = result.main
        if not options.quiet:
            title = f"{name} of {options.snapshot}, preset {main.plan.preset}"
            say(*conversion_report(main, title, verbose=options.verbose))
            say(*_others(result))
            targets.show(measured)
        else:
            say(*(f"warning: {w}" for w in main.warnings))
        alone = "" if made is None else f": {name} alone, as {made.format}"
        say_whole(f"wrote {out if made is None else ' and '.join(made.files)}{alone}")
    targets.report_missed(measured, options)
    polish = result.main[1].polish
    if polish is not None and polish.ended == "interrupted":
        raise Stopped


def _announce(expected: PolishForecast, polishing: Polishing, bars: Bars) -> None:
    """Say before a polish that is too short how many steps it makes, and how long it should be."""
    if expected.steps >= expected.useful_steps or polishing.polish_steps is not None:
        return
    bars.note(
        f"polish: about {counted(expected.steps, 'step')} in {polishing.polish:g} min "
        f"({expected.step_seconds:.1f} s each); a useful polish makes {expected.useful_steps}: "
        f"--polish {math.ceil(expected.useful_minutes)}"
    )


def _others(result: FileConversion) -> list[str]:
    """A line for each generator of the file beside the main one."""
    lines: list[str] = []
    for key, conversion in list(result.conversions.items())[1:]:
        quality = "" if conversion.psnr is None else f", PSNR {conversion.psnr:.1f} dB"
        seconds = sum(conversion.seconds.values())
        same = "" if conversion.seconds else " (the same weights: fitted once)"
        polish = ", not polished" if result.main[1].polish is not None else ""
        lines.append(f"{key}: by the same plan{same}{polish}{quality}, {seconds:.1f} s")
    return lines
