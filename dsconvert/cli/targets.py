"""``convert --target``: plan by measured time, and show what was promised beside what came out."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from torch import nn

from dsconvert.bench import Settings
from dsconvert.cli.output import Bars, say
from dsconvert.kinds import Opened, inputs_of
from dsconvert.measured import MeasuredPlan, plan_measured, verify
from dsconvert.measured.units import figure
from dsconvert.report.layout import compact


def planned(file: Opened, options: Namespace, bars: Bars) -> MeasuredPlan:
    """The plan for the targets that were typed."""
    return plan_measured(
        file.generator,
        options.target,
        batch=options.batch,
        train_batch=options.train_batch,
        settings=Settings(device=options.device, dtype=options.dtype, threads=options.threads),
        layouts=(False, True) if options.channels_last else (False,),
        keep=tuple(options.keep),
        inputs=inputs_of(file),
        calibrate=8 if options.calibrate is None else min(8, options.calibrate),
        seed=options.seed,
        remeasure=options.remeasure,
        progress=bars,
    )


def checked(measured: MeasuredPlan, file: Opened, models: Mapping[str, nn.Module]) -> MeasuredPlan:
    """The same with its promises measured on the converted model."""
    main = models[file.generators[0]]
    promises = verify(measured, file.generator, main, inputs=inputs_of(file))
    return dataclasses.replace(measured, promises=promises)


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
        "measured_with": {
            **dataclasses.asdict(probe.settings),
            "batch": probe.batch,
            "train_batch": probe.train_batch,
            "channels_last": measured.channels_last,
            "loss": measured.loss,
            "times_measured": measured.measured,
            "profile": measured.profile,
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
        f"{measured.measured} times measured now; profile: {measured.profile}"
    )
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


def _with_spread(metric: str, value: float, spread: tuple[float, float] | None) -> str:
    if spread is None:
        return figure(metric, value)
    return f"{figure(metric, value)} (±{50 * (spread[1] - spread[0]) / value:.0f} %)"
