"""``distill``: a converted generator learns from its original."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsconvert.cli.files import source_of
from dsconvert.cli.output import Bars, emit, say, say_whole
from dsconvert.cli.parser import Call
from dsconvert.cli.stopping import Outcome, Stopped
from dsconvert.config.distill import DistillJob
from dsconvert.distill.files import distill_snapshot, run_folder
from dsconvert.runs.folder import RunFolder
from dsconvert.util.numbers import counted


def run(call: Call) -> None:
    """Distil, write the file, and report the distances before and after."""
    options: DistillJob = call.options
    config = options.config
    with _interruptible(call), Bars(hidden=options.quiet) as bars:
        done = distill_snapshot(
            options.snapshot,
            options.student,
            options.out,
            config=config,
            folder=options.run,
            resume=options.resume,
            overwrite=options.overwrite,
            device=options.device,
            module=source_of(options.source),
            pictures=options.pictures,
            progress=bars,
        )
    result = done.distilled
    if options.json:
        data: dict[str, Any] = {
            "teacher": options.snapshot,
            "student": options.student,
            "out": options.out,
            "run": str(done.folder),
            "report": str(done.report),
            "settings": config.to_dict(),
            "steps": result.steps,
            "seconds": result.seconds,
            "reason": result.reason,
            "before": asdict(result.before),
            "after": asdict(result.after),
            "end": asdict(result.end),
            "best_step": result.best_step,
            "blocks": list(result.blocks),
            "notes": list(result.notes),
            "macs": [done.before.macs, done.after.macs],
            "parameters": [done.before.params, done.after.params],
        }
        emit(data)
        return
    clock = "" if config.clock == "wall" else " of the processor"
    lines = [
        f"{counted(result.steps, 'step')} of {counted(config.batch, 'latent')} in "
        f"{result.seconds / 60:.1f} minutes{clock}, ended by {result.reason}",
        "on held-out latents     before     after",
        f"{'distance':<18} {result.before.distance:>11.4f} {result.after.distance:>9.4f}",
    ]
    lines += [
        f"  {name:<16} {value:>11.4f} {result.after.terms[name]:>9.4f}"
        for name, value in result.before.terms.items()
    ]
    lines.append(f"{'PSNR, dB':<18} {result.before.psnr:>11.2f} {result.after.psnr:>9.2f}")
    lines += [f"note: {n}." for n in result.notes]
    if not options.quiet:
        say(*lines)
    say_whole(f"wrote {done.out}; curves and pictures: {done.report}")


@contextmanager
def _interruptible(call: Call) -> Generator[None, None, None]:
    """Report the saved state of an interrupted run, and the command that continues it.

    Raises:
        Stopped: it was interrupted.
    """
    options: DistillJob = call.options
    folder = Path(options.run) if options.run else run_folder(options.out)
    outcome = Outcome(call.command, options)
    try:
        yield
    except KeyboardInterrupt:
        saved = RunFolder.of_distillation(folder).images_saved()
        steps = (saved or 0) // options.config.batch
        words = [w for w in call.words if w != "--resume"]
        again = shlex.join(["dsconvert", *words, *(["--resume"] if saved is not None else [])])
        if options.json:
            emit(
                {
                    "interrupted": True,
                    "run": str(folder),
                    "steps": steps,
                    "go_on": again,
                }
            )
        elif outcome.written:
            say_whole(f"{options.out} is written whole; its report in {folder} is not")
        elif saved is not None:
            after = counted(steps, "step")
            say_whole(f"stopped after {after}, saved in {folder}; go on with: {again}")
        else:
            say_whole(f"stopped before the first step: nothing to save; start again with: {again}")
        raise Stopped from None
