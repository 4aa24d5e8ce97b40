"""``convert --target``: plan by measured time; show the promised figures beside the measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from dsconvert.cli.output import Bars, say, say_whole
from dsconvert.config.convert import ConvertJob
from dsconvert.errors import MissedTargetError, UsageError
from dsconvert.formats.base import GeneratorFile
from dsconvert.model.inputs import RandomPixels, needs_pictures_to_fit
from dsconvert.report.layout import compact
from dsconvert.search import Clock, MeasuredPlan, missed, plan_measured, verify
from dsconvert.search.units import figure
from dsconvert.util.devices import for_work

_REMEDY = "Nothing was written; --best-effort writes the nearest all the same."


def planned(
    file: GeneratorFile, options: ConvertJob, bars: Bars, *, clock: Clock | None = None
) -> MeasuredPlan:
    """Plan for the typed targets.

    Raises:
        MissedTargetError: they are out of reach, and ``--best-effort`` was not given.
    """
    targets, fitting = options.targets, options.fitting
    inputs = file.inputs()
    if inputs is None:
        raise UsageError(
            f"--target runs the generator, and nothing says what the inputs of {file.path} look "
            "like; add --input SHAPE (say, --input 256)."
        )
    if isinstance(inputs, RandomPixels) and fitting.calibrate != 0:
        raise UsageError(needs_pictures_to_fit(file.generator, inputs))
    try:
        return plan_measured(
            file.generator,
            targets.target,
            batch=targets.batch,
            train_batch=targets.train_batch,
            settings=dataclasses.replace(targets.measuring, device=str(for_work(options.device))),
            layouts=(False, True) if targets.channels_last else (False,),
            width=1 if options.rewriting.width is None else options.rewriting.width,
            keep=options.rewriting.keep,
            refit=options.rewriting.refit,
            remove=options.rewriting.remove,
            inputs=inputs,
            adapter=file.adapter,
            calibrate=8 if fitting.calibrate is None else min(8, fitting.calibrate),
            seed=fitting.seed,
            remeasure=targets.remeasure,
            clock=clock,
            best_effort=targets.best_effort,
            progress=bars,
        )
    except MissedTargetError as error:
        raise MissedTargetError(f"{error} {_REMEDY}") from error


def checked(
    measured: MeasuredPlan,
    file: GeneratorFile,
    models: Mapping[str, nn.Module],
    *,
    clock: Clock | None = None,
) -> MeasuredPlan:
    """Measure the promised figures on the converted model."""
    main = models[file.generators[0]]
    promises = verify(
        measured, file.generator, main, inputs=file.inputs(), adapter=file.adapter, clock=clock
    )
    return dataclasses.replace(measured, promises=promises)


def require_met(measured: MeasuredPlan | None, options: ConvertJob) -> None:
    """Raise before anything is written if a target is missed, unless ``--best-effort``.

    Raises:
        MissedTargetError: a target is missed.
    """
    if measured is None or options.targets.best_effort:
        return
    if (why := _miss(measured)) is not None:
        raise MissedTargetError(f"{why} {_REMEDY}")


def report_missed(measured: MeasuredPlan | None, options: ConvertJob) -> None:
    """Raise after the work if a target is missed in spite of ``--best-effort``.

    Raises:
        MissedTargetError: a target is missed.
    """
    if measured is not None and (why := _miss(measured)) is not None:
        done = f"{options.out} is written all the same" if options.out else "The plan is shown"
        raise MissedTargetError(f"{why} {done} (--best-effort).")


def _miss(measured: MeasuredPlan) -> str | None:
    return measured.missed or missed(measured.promises)


def as_dict(measured: MeasuredPlan | None) -> dict[str, Any]:
    """For ``--json``; nothing where no target was given."""
    if measured is None:
        return {}
    probe = measured.probe
    rows = [
        {
            "target": p.target.text,
            "original": p.before,
            "budget": p.budget,
            "promised": p.promised,
            "measured": p.measured,
            "measured_quartiles": list(p.spread) if p.spread else None,
            "met": p.met,
        }
        for p in measured.promises
    ]
    return {
        "targets": rows,
        "missed": _miss(measured),
        "unchanged": measured.unchanged,
        "measured_with": {
            **dataclasses.asdict(probe.settings),
            "batch": probe.batch,
            "train_batch": probe.train_batch,
            "channels_last": measured.channels_last,
            "loss": measured.loss,
            "times_measured": measured.measured,
            "profile": measured.profile,
            "notes": list(measured.notes),
        },
    }


def show(measured: MeasuredPlan | None) -> None:
    """A table of the targets; nothing where none was given."""
    if measured is None:
        return
    probe = measured.probe
    layout = "channels_last" if measured.channels_last else "contiguous"
    say(
        f"targets on {probe.settings.device}, {probe.settings.dtype}, {layout}; "
        f"{measured.measured} times measured now"
    )
    say_whole(f"profile: {measured.profile}")
    table = compact("target", [], ["original", "allowed", "promised", "measured", "ratio"])
    table.add_column("", no_wrap=True)
    for p in measured.promises:
        verdict = {None: "not measured yet", True: "met", False: "missed"}[p.met]
        final = p.promised if p.measured is None else p.measured
        table.add_row(
            p.target.text,
            *(figure(p.metric, v) for v in (p.before, p.budget, p.promised)),
            "" if p.measured is None else _with_spread(p.metric, p.measured, p.spread),
            f"{final / p.before:.3f}x",
            verdict,
        )
    say(table)
    if measured.unchanged:
        reason = measured.plan.decisions[0].reason if measured.plan.decisions else "left as it is"
        say(reason)
    for note in measured.notes:
        say(f"note: {note}")


def _with_spread(metric: str, value: float, spread: tuple[float, float] | None) -> str:
    if spread is None:
        return figure(metric, value)
    return f"{figure(metric, value)} (±{50 * (spread[1] - spread[0]) / value:.0f} %)"
