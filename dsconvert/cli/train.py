"""``train`` and ``finetune``: begin or continue a run, and report its progress and end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsconvert.cli.output import Bars, emit, say, say_whole
from dsconvert.cli.parser import Call
from dsconvert.cli.stopping import Stopped, resuming
from dsconvert.config.setting import items
from dsconvert.config.train import FinetuneJob, TrainConfig, TrainJob
from dsconvert.runs.folder import RunFolder
from dsconvert.runs.stats import read_stats
from dsconvert.train import runs
from dsconvert.train.launch import RunResult
from dsconvert.util.numbers import counted


def train(call: Call) -> None:
    """Train a new generator, or continue a run."""
    options: TrainJob = call.options
    with Bars(hidden=options.quiet) as bars:
        watch = Watcher(bars, quiet=options.quiet)
        if options.resume:
            done = runs.resume(
                options.resume,
                device=options.device,
                progress=watch.progress,
                report=watch.report,
                **_changes(call.typed),
            )
        else:
            done = runs.train_new(
                options.generator,
                options.config,
                data=str(options.data),
                out=options.out,
                name=options.name,
                conditional=options.cond,
                backbone=options.backbone,
                discriminator=options.discriminator,
                device=options.device,
                progress=watch.progress,
                report=watch.report,
            )
    _finish(done, options)


def finetune(call: Call) -> None:
    """Train a file's generator further."""
    options: FinetuneJob = call.options
    with Bars(hidden=options.quiet) as bars:
        watch = Watcher(bars, quiet=options.quiet)
        done = runs.finetune(
            options.snapshot,
            options.config,
            data=str(options.data),
            out=options.out,
            name=options.name,
            new_heads=options.new_discriminator,
            backbone=options.backbone,
            discriminator=options.discriminator,
            device=options.device,
            progress=watch.progress,
            report=watch.report,
        )
    _finish(done, options)


def _changes(typed: Mapping[str, Any]) -> dict[str, Any]:
    """The typed settings of the recipe, by name."""
    found = [item for item in items(TrainConfig) if item.option in typed]
    return {item.name: typed[str(item.option)] for item in found}


class Watcher:
    """A bar where there is a terminal; a line a tick on stderr where there is none."""

    def __init__(self, bars: Bars, *, quiet: bool) -> None:
        self._bars = bars
        self._lines = not quiet and not sys.stderr.isatty()

    def progress(self, stage: str, done: int, total: int, detail: str) -> None:
        """Show progress; the loop calls this after each step."""
        self._bars(stage, done, total, detail)

    def report(self, row: Mapping[str, Any]) -> None:
        """Write a line of statistics; the loop calls this at each tick."""
        if self._lines:
            sys.stderr.write(line(row) + "\n")
            sys.stderr.flush()


def line(row: Mapping[str, Any]) -> str:
    """One line of a log."""
    text = f"kimg {_length(row['kimg']):<8}"
    if "fd_lite0" in row:
        floor = row.get("fd_floor")
        known = "" if floor is None else f" (real to other real images {floor:.1f})"
        return f"{text} FD-lite0 {row['fd_lite0']:.1f} over {row['fd_images']} images{known}"
    pace, memory = row["sec_per_kimg"], row["peak_memory_bytes"] / 2**30
    return (
        f"{text} G {row['loss_g']:+.3f}  D {row['loss_d']:.3f}  "
        f"s/kimg {pace or float('nan'):.1f}  memory {memory:.2f} GiB"
    )


def _finish(done: RunResult, options: TrainJob | FinetuneJob) -> None:
    """Report how the run ended, and the command that continues an interrupted one.

    Raises:
        Stopped: the run was interrupted (and saved).
    """
    result = done.result
    if done.rank == 0:
        if options.json:
            emit(
                {
                    "run": str(done.folder),
                    "images": result.images,
                    "seconds": result.seconds,
                    "interrupted": result.interrupted,
                    "snapshot": None if done.snapshot is None else str(done.snapshot),
                    "report": None if done.report is None else str(done.report),
                    "best_fd_lite0": result.best,
                    "unreadable": list(result.unreadable),
                    "notes": list(done.notes),
                }
            )
        else:
            if result.unreadable and not options.quiet:
                say(
                    f"{counted(len(result.unreadable), 'image')} left out, because unreadable: "
                    + "; ".join(result.unreadable[:10])
                    + ("; ..." if len(result.unreadable) > 10 else "")
                )
            kimg = _length(result.images / 1000)
            if result.interrupted:
                say_whole(f"stopped at {kimg} kimg, saved; go on with: {resuming(done.folder)}")
            elif result.snapshot is None:  # a finished run was resumed
                say_whole(_finished(kimg, done.snapshot))
            else:
                say_whole(f"{kimg} kimg in {result.seconds:.0f} s; wrote {result.snapshot}")
            if not options.quiet:
                for sentence in _best(done):
                    say_whole(sentence)
                say(*(f"note: {n}." for n in done.notes))
            if done.report is not None and not options.quiet:
                say_whole(f"report: {done.report}")
    if result.interrupted:
        raise Stopped


def _length(kimg: float) -> str:
    """Two digits behind the point; of a trial of a few images as many as it takes."""
    return f"{kimg:.2f}" if kimg == 0 or kimg >= 0.1 else f"{kimg:.2g}"


def _finished(kimg: str, snapshot: Path | None) -> str:
    newest = "it has no snapshot" if snapshot is None else f"the newest snapshot is {snapshot}"
    return f"it had its {kimg} kimg already; {newest}"


def _best(done: RunResult) -> list[str]:
    """The snapshot nearest to the data, if the run was evaluated."""
    rows = [r for r in read_stats(done.result.stats) if r.get("fd_lite0") is not None]
    if done.result.best is None or not rows:
        return []
    best = min(rows, key=lambda r: r["fd_lite0"])
    text = f"lowest FD-lite0 {best['fd_lite0']:.1f} over {best['fd_images']} images"
    if not best["images"]:
        text += ", at the start: no snapshot is nearer to the data than what the run began with"
    else:
        text += f", at {_length(best['kimg'])} kimg"
    return [f"{text} ({RunFolder(done.folder).best})"]
