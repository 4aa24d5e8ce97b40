"""One function a command."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dsconvert.cli.output import Bars, emit, say
from dsconvert.errors import PlanError, UsageError
from dsconvert.files import convert_snapshot, plan_snapshot
from dsconvert.images import check_target, grid, psnr, save_png, side_by_side, whole_file
from dsconvert.metrics import LiteFeatures, feature_distance
from dsconvert.pipeline import cost, sampler_of
from dsconvert.records import Plan
from dsconvert.report.jsonable import conversion_dict, cost_dict, plan_dict
from dsconvert.report.tables import conversion_table, cost_table, plan_table, snapshot_table
from dsconvert.snapshot import inspect_snapshot, load_snapshot, save_snapshot

Progress = Callable[[int], None]


def _write_text(text: str, path: str, *, overwrite: bool) -> None:
    with whole_file(path, overwrite=overwrite) as beside:
        beside.write_text(text, encoding="utf-8")


def _read_plan(path: str) -> Plan:
    try:
        return Plan.from_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"can't read the plan {path}: {error}.") from None


def convert(options: Namespace) -> None:
    """The main job."""
    if options.out:
        check_target(options.out, overwrite=options.overwrite)
    chosen = _read_plan(options.plan) if options.plan else None
    snap = load_snapshot(options.snapshot, drop=tuple(options.drop))
    if options.plan_only:
        plan = plan_snapshot(
            snap, preset=options.preset, rank=options.rank, keep=tuple(options.keep), plan=chosen
        )
        if options.out:
            _write_text(plan.to_json() + "\n", options.out, overwrite=options.overwrite)
        if options.json:
            emit(plan_dict(plan))
        elif not options.out:
            say(plan_table(plan))
        return
    with Bars(hidden=options.quiet) as bars:
        result = convert_snapshot(
            snap,
            preset=options.preset,
            rank=options.rank,
            keep=tuple(options.keep),
            plan=chosen,
            init=options.init,
            calibrate=options.calibrate,
            seed=options.seed,
            progress=bars,
        )
    save_snapshot(snap, result.models, options.out, overwrite=options.overwrite)
    if options.json:
        entries = {k: conversion_dict(c) for k, c in result.conversions.items()}
        emit({"input": options.snapshot, "output": options.out, "converted": entries})
        return
    main = result.conversions["G_ema"]
    say(conversion_table(main, f"G_ema of {options.snapshot}, preset {main.plan.preset}"))
    for key, c in result.conversions.items():
        say(f"{key}: " + ", ".join(f"{k} {v:.1f} s" for k, v in c.seconds.items()))
    say(f"wrote {options.out}")


def inspect(options: Namespace) -> None:
    """What is in a file."""
    info = inspect_snapshot(options.snapshot)
    if options.json:
        emit(info.as_dict())
    else:
        say(snapshot_table(info))


def report(options: Namespace) -> None:
    """Parameters and MACs, of one file or before and after."""
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


def _images(
    model: nn.Module, seeds: tuple[int, ...], label: int | None, progress: Progress
) -> Tensor:
    """One image a seed, latents drawn as the official ``gen_images.py`` draws them.

    The model's own noise is seeded too, so that two models see the same draws.
    """
    z_dim, c_dim = int(getattr(model, "z_dim", 256)), int(getattr(model, "c_dim", 0))
    if label is not None and not c_dim:
        raise UsageError("--class was given, but this generator is unconditional.")
    if label is not None and label >= c_dim:
        raise UsageError(f"--class {label} is outside 0..{c_dim - 1}.")
    if c_dim and label is None:
        raise UsageError(f"this generator is conditional: give --class 0..{c_dim - 1}.")
    condition = torch.zeros(1, c_dim)
    if label is not None:
        condition[0, label] = 1
    images: list[Tensor] = []
    model.eval()
    with torch.no_grad(), torch.random.fork_rng():
        for seed in seeds:
            z = torch.from_numpy(np.random.RandomState(seed).randn(1, z_dim)).float()
            torch.manual_seed(seed)
            images.append(model(z, condition).float())
            progress(len(images))
    return torch.cat(images)


def _stage(bars: Bars, stage: str, options: Namespace) -> Progress:
    return lambda done: bars(stage, done, len(options.seeds))


def generate(options: Namespace) -> None:
    """A grid of images."""
    check_target(options.out, overwrite=options.overwrite)
    model = load_snapshot(options.snapshot).generator
    with Bars(hidden=options.quiet) as bars:
        images = _images(model, options.seeds, options.label, _stage(bars, "images", options))
    save_png(grid(images), options.out, overwrite=options.overwrite)
    if options.json:
        emit({"snapshot": options.snapshot, "out": options.out, "seeds": options.seeds})
    else:
        say(f"wrote {len(images)} images to {options.out}")


def _labels(first: str, second: str) -> tuple[str, str]:
    """File names alone, where they differ: a sheet of one image has no room for a whole path."""
    names = Path(first).name, Path(second).name
    return names if names[0] != names[1] else (first, second)


def compare(options: Namespace) -> None:
    """The same latents and noise through two files, with the PSNR of each pair."""
    check_target(options.out, overwrite=options.overwrite)
    # What is missing is missed now, not after minutes of work.
    features = LiteFeatures() if options.distance else None
    first = load_snapshot(options.snapshot).generator
    second = load_snapshot(options.other).generator
    one, two = _labels(options.snapshot, options.other)
    with Bars(hidden=options.quiet) as bars:
        a = _images(first, options.seeds, options.label, _stage(bars, one, options))
        b = _images(second, options.seeds, options.label, _stage(bars, two, options))
    if a.shape != b.shape:
        raise UsageError(
            f"{options.snapshot} makes {list(a.shape[1:])} images and {options.other} "
            f"{list(b.shape[1:])}: they can't be compared."
        )
    values = psnr(b, a)
    data: dict[str, Any] = {
        "snapshot": options.snapshot,
        "other": options.other,
        "out": options.out,
        "psnr_db": {str(s): float(v) for s, v in zip(options.seeds, values, strict=True)},
        "psnr_db_mean": float(values.mean()),
    }
    text = f"PSNR {values.mean():.1f} dB (mean), {values.min():.1f} dB (worst)"
    if features is not None:
        with Bars(hidden=options.quiet) as bars:
            fd = feature_distance(
                second,
                first,
                sampler_of(first),
                samples=options.distance,
                features=features,
                progress=bars,
            )
        data["fd_lite0"] = {**vars(fd), "distinguishable": fd.distinguishable}
        verdict = "distinguishable" if fd.distinguishable else "not distinguishable"
        text += (
            f"\nFD-lite0 over {fd.samples} images: {fd.value:.1f}, floor (original against itself,"
            f" other latents) {fd.floor:.1f}, difference {fd.interval[0]:.1f} to"
            f" {fd.interval[1]:.1f}: {verdict}; same latents {fd.same_latents:.1f}"
        )
    rows = {one: a, f"{two} (PSNR {values.mean():.1f} dB)": b}
    save_png(side_by_side(rows), options.out, overwrite=options.overwrite)
    if options.json:
        emit(data)
    else:
        say(f"{text}\nwrote {options.out}")


COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "convert": convert,
    "inspect": inspect,
    "report": report,
    "generate": generate,
    "compare": compare,
}
