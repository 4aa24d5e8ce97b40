"""One function a command."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from dsconvert.errors import PlanError, UsageError
from dsconvert.files import convert_snapshot, plan_snapshot
from dsconvert.images import check_target, grid, psnr, save_png, side_by_side
from dsconvert.pipeline import cost, sampler_of
from dsconvert.records import Plan
from dsconvert.report.jsonable import conversion_dict, cost_dict, finite, plan_dict
from dsconvert.report.tables import conversion_table, cost_table, plan_table, snapshot_table
from dsconvert.snapshot import inspect_snapshot, load_snapshot, save_snapshot

_WIDE = 150


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave the exit code to ``main``; rich would exit with 1."""
        raise BrokenPipeError


def _console() -> Console:
    # A pipe has no width of its own; a table folded to 80 columns helps nobody. No markup: file and
    # module names may have brackets in them.
    width = None if sys.stdout.isatty() else _WIDE
    return _Console(width=width, markup=False, highlight=False, soft_wrap=False)


def _emit(data: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(finite(data), default=str, allow_nan=False) + "\n")


def _write_text(text: str, path: str, *, overwrite: bool) -> None:
    target = check_target(path, overwrite=overwrite)
    beside = target.with_name(f".{target.name}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


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
        plan = chosen or plan_snapshot(
            snap, preset=options.preset, rank=options.rank, keep=tuple(options.keep)
        )
        if options.out:
            _write_text(plan.to_json() + "\n", options.out, overwrite=options.overwrite)
        if options.json:
            _emit(plan_dict(plan))
        elif not options.out:
            _console().print(plan_table(plan))
        return
    with _Bars(hidden=options.quiet) as bars:
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
        _emit({"input": options.snapshot, "output": options.out, "converted": entries})
        return
    console = _console()
    main = result.conversions["G_ema"]
    console.print(conversion_table(main, f"G_ema of {options.snapshot}, preset {main.plan.preset}"))
    for key, c in result.conversions.items():
        times = ", ".join(f"{k} {v:.1f} s" for k, v in c.seconds.items())
        console.print(f"{key}: {times}")
    console.print(f"wrote {options.out}")


class _Bars:
    """A progress bar a stage, on stderr, with the time that is left; a terminal only."""

    def __init__(self, *, hidden: bool) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=hidden or not console.is_terminal,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bars:  # noqa: PYI034 - typing.Self is younger than 3.10
        return self  # the display starts with the first report, after the plan has been checked

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int, detail: str) -> None:
        self._progress.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, detail=detail)
        self._progress.update(self._tasks[stage], completed=done, total=total, detail=detail)


def inspect(options: Namespace) -> None:
    """What is in a file."""
    info = inspect_snapshot(options.snapshot)
    if options.json:
        _emit(info.as_dict())
    else:
        _console().print(snapshot_table(info))


def report(options: Namespace) -> None:
    """Parameters and MACs, of one file or before and after."""
    before = cost(load_snapshot(options.snapshot).generator)
    after = cost(load_snapshot(options.other).generator) if options.other else None
    if options.json:
        data: dict[str, Any] = {"snapshot": options.snapshot, "cost": cost_dict(before)}
        if after is not None:
            data |= {"other": options.other, "other_cost": cost_dict(after)}
        _emit(data)
        return
    names = options.snapshot + (f" > {options.other}" if options.other else "")
    _console().print(cost_table(before, after, title=f"G_ema of {names}"))


def _images(model: nn.Module, seeds: tuple[int, ...], label: int | None) -> Tensor:
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
    return torch.cat(images)


def generate(options: Namespace) -> None:
    """A grid of images."""
    check_target(options.out, overwrite=options.overwrite)
    images = _images(load_snapshot(options.snapshot).generator, options.seeds, options.label)
    save_png(grid(images), options.out, overwrite=options.overwrite)
    if options.json:
        _emit({"snapshot": options.snapshot, "out": options.out, "seeds": options.seeds})
    else:
        _console().print(f"wrote {len(images)} images to {options.out}")


def compare(options: Namespace) -> None:
    """The same latents and noise through two files, with the PSNR of each pair."""
    check_target(options.out, overwrite=options.overwrite)
    first = load_snapshot(options.snapshot).generator
    second = load_snapshot(options.other).generator
    a = _images(first, options.seeds, options.label)
    b = _images(second, options.seeds, options.label)
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
    if options.distance:
        from dsconvert.metrics import feature_distance

        fd = feature_distance(second, first, sampler_of(first), samples=options.distance)
        data["fd_lite0"] = {**vars(fd), "distinguishable": fd.distinguishable}
        verdict = "distinguishable" if fd.distinguishable else "not distinguishable"
        text += (
            f"\nFD-lite0 over {fd.samples} images: {fd.value:.1f}, floor (original against itself,"
            f" other latents) {fd.floor:.1f}, difference {fd.interval[0]:.1f} to"
            f" {fd.interval[1]:.1f}: {verdict}; same latents {fd.same_latents:.1f}"
        )
    rows = {str(options.snapshot): a, f"{options.other} (PSNR {values.mean():.1f} dB)": b}
    save_png(side_by_side(rows), options.out, overwrite=options.overwrite)
    if options.json:
        _emit(data)
    else:
        _console().print(f"{text}\nwrote {options.out}")


COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "convert": convert,
    "inspect": inspect,
    "report": report,
    "generate": generate,
    "compare": compare,
}
