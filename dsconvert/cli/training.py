"""What the training commands share: the recipe from the options, and what is said meanwhile."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from dsconvert.cli.output import Bars, emit, say, say_whole
from dsconvert.cli.stopping import Stopped
from dsconvert.runs.folder import RunFolder
from dsconvert.runs.stats import read_stats
from dsconvert.train.config import TrainConfig
from dsconvert.train.launch import RunResult


def changes(options: Namespace) -> dict[str, Any]:
    """The settings that were typed and that a resumed run may change."""
    names = {
        "kimg": options.kimg,
        "tick_kimg": options.tick,
        "snapshot_ticks": options.snap,
        "checkpoint_minutes": options.checkpoint_minutes,
        "keep_last": options.keep_last,
        "evaluate": options.evaluate,
        "workers": options.workers,
        "recompute": options.recompute,
        "compile": options.compile or None,
    }
    return {k: v for k, v in names.items() if v is not None}


def config_of(options: Namespace, **more: Any) -> TrainConfig:
    """The recipe that was typed."""
    typed: dict[str, Any] = changes(options)
    for name in ("batch", "micro_batch", "seed", "precision", "ema_kimg"):
        if getattr(options, name) is not None:
            typed[name] = getattr(options, name)
    if options.lr is not None:
        typed |= {"lr_generator": options.lr, "lr_discriminator": options.lr}
    if options.blur_sigma is not None:
        typed |= {"blur_init_sigma": options.blur_sigma, "blur_fade_kimg": options.blur_kimg}
    return TrainConfig(
        mirror=options.mirror,
        channels_last=options.channels_last,
        deterministic=options.deterministic,
        **typed,
        **more,
    )


class Watcher:
    """A bar where there is a terminal; a line a tick on stderr where there is none."""

    def __init__(self, bars: Bars, *, quiet: bool) -> None:
        self._bars = bars
        self._lines = not quiet and not sys.stderr.isatty()

    def progress(self, stage: str, done: int, total: int, detail: str) -> None:
        """What the loop calls after each step."""
        self._bars(stage, done, total, detail)

    def report(self, row: Mapping[str, Any]) -> None:
        """What the loop calls with each line of statistics."""
        if self._lines:
            sys.stderr.write(line(row) + "\n")
            sys.stderr.flush()


def line(row: Mapping[str, Any]) -> str:
    """One line of a log."""
    text = f"kimg {row['kimg']:<8.2f}"
    if "fd_lite0" in row:
        floor = row.get("fd_floor")
        known = "" if floor is None else f" (real to other real images {floor:.1f})"
        return f"{text} FD-lite0 {row['fd_lite0']:.1f} over {row['fd_images']} images{known}"
    pace, memory = row["sec_per_kimg"], row["peak_memory_bytes"] / 2**30
    return (
        f"{text} G {row['loss_g']:+.3f}  D {row['loss_d']:.3f}  "
        f"s/kimg {pace or float('nan'):.1f}  memory {memory:.2f} GiB"
    )


def finish(done: RunResult, options: Namespace) -> None:
    """Say how it ended; an interrupted run says how it goes on.

    Raises:
        Stopped: it was interrupted (and saved).
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
                    f"{len(result.unreadable)} images could not be read and were left out: "
                    + "; ".join(result.unreadable[:10])
                    + ("; ..." if len(result.unreadable) > 10 else "")
                )
            kimg = result.images / 1000
            if result.interrupted:
                say_whole(
                    f"stopped at {kimg:.2f} kimg, saved; go on with: "
                    f"dsconvert train --resume {done.folder}"
                )
            elif result.snapshot is None:  # a finished run was resumed
                say(f"it had its {kimg:.2f} kimg already; the newest snapshot is {done.snapshot}")
            else:
                say(f"{kimg:.2f} kimg in {result.seconds:.0f} s; wrote {result.snapshot}")
            if not options.quiet:
                say(*_best(done), *(f"note: {n}." for n in done.notes))
            if done.report is not None and not options.quiet:
                say(f"report: {done.report}")
    if result.interrupted:
        raise Stopped


def _best(done: RunResult) -> list[str]:
    """Which snapshot is the nearest to the data, where the run was judged."""
    rows = [r for r in read_stats(done.result.stats) if r.get("fd_lite0") is not None]
    if done.result.best is None or not rows:
        return []
    best = min(rows, key=lambda r: r["fd_lite0"])
    text = f"lowest FD-lite0 {best['fd_lite0']:.1f} over {best['fd_images']} images"
    if not best["images"]:
        text += ", at the start: no snapshot is nearer to the data than what the run began with"
    else:
        text += f", at {best['kimg']:.2f} kimg"
    return [f"{text} ({RunFolder(done.folder).best})"]
