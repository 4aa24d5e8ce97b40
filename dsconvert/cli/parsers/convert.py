"""``dsconvert convert``, the main job."""

from __future__ import annotations

import argparse

from dsconvert.cli import codes
from dsconvert.cli.parsers import arguments
from dsconvert.config.choices import DTYPES, INITS, PRESETS
from dsconvert.errors import UsageError

_PRESET = "balanced"


HELP = "the main job"


def add(command: argparse.ArgumentParser) -> None:
    """Declare its options."""
    command.epilog = codes.HELP
    command.add_argument(
        "snapshot", help="a snapshot (.pkl) or a checkpoint of a known codebase (.pth, .pt)"
    )
    arguments.output(command, required=False)
    command.add_argument("--preset", choices=PRESETS, help=f"default: {_PRESET}")
    command.add_argument(
        "--rank", type=arguments.whole, metavar="N", help="one rank for every rewrite"
    )
    command.add_argument(
        "--init",
        choices=INITS,
        default="fit",
        help="fit: to activations (no data needed); svd: kernels only; random: to train anew",
    )
    command.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="GLOB",
        help="leave these modules as they are, to the byte",
    )
    command.add_argument(
        "--refit",
        action="append",
        default=[],
        metavar="GLOB",
        help="keep these modules, too, but refit them to their new inputs",
    )
    command.add_argument(
        "--remove",
        action="append",
        default=[],
        metavar="GLOB",
        help="take out these modules, which forward never calls",
    )
    command.add_argument("--plan", metavar="FILE", help="use an edited plan instead of a preset")
    command.add_argument(
        "--plan-only", action="store_true", help="show the plan (with --out: write it as JSON)"
    )
    command.add_argument(
        "--calibrate",
        type=arguments.whole,
        metavar="N",
        help="latents for fit and statistics; 0: off",
    )
    command.add_argument(
        "--seed", type=arguments.seed, default=0, help="of every random draw (default 0)"
    )
    command.add_argument(
        "--drop", action="append", default=[], metavar="KEY", help="leave an entry out (say, D)"
    )
    _targets(command)
    arguments.quiet(command)
    arguments.verbose(command)
    arguments.json(command)
    arguments.module(command)


def _targets(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("plans from measured time")
    group.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="METRIC=BOUND",
        help="instead of a preset: the least loss within latency=0.2x, train-time=2s, "
        "memory=500MiB, macs=3GMAC, params=10M (x: of the original; repeatable)",
    )
    group.add_argument("--batch", type=arguments.whole, metavar="N", help="of latency (default 1)")
    group.add_argument(
        "--train-batch", type=arguments.whole, metavar="N", help="of train-time, memory (default 4)"
    )
    group.add_argument("--device", help="to measure on (default: the accelerator)")
    group.add_argument("--dtype", choices=DTYPES, help="to measure in (default float32)")
    group.add_argument("--threads", type=arguments.whole, metavar="N", help="CPU threads")
    group.add_argument(
        "--channels-last",
        action="store_true",
        help="try that memory layout too, for a model that will be run in it",
    )
    group.add_argument(
        "--remeasure", action="store_true", help="take no time from an earlier run's profile"
    )
    group.add_argument(
        "--best-effort",
        action="store_true",
        help="where a target is missed, write the nearest file all the same (exit code 3 stays)",
    )


def _check_targets(options: argparse.Namespace) -> None:
    if not options.target:
        given = ("batch", "train_batch", "device", "dtype", "threads")
        idle = [n for n in given if getattr(options, n) is not None]
        idle += [n for n in ("channels_last", "remeasure", "best_effort") if getattr(options, n)]
        if idle:
            names = ", ".join("--" + n.replace("_", "-") for n in idle)
            raise UsageError(f"{names}: only together with --target.")
        return
    if options.plan or options.preset or options.rank is not None:
        raise UsageError("--target chooses rules and ranks; drop --plan, --preset and --rank.")
    for name, usual in (("batch", 1), ("train_batch", 4)):
        value = getattr(options, name)
        if value == 0:
            raise UsageError(f"--{name.replace('_', '-')} 0 runs nothing; give 1 or more.")
        setattr(options, name, value or usual)
    options.device = options.device or "auto"
    options.dtype = options.dtype or "float32"


def check(options: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    if not options.out and not options.plan_only:
        raise UsageError("convert needs --out FILE (or --plan-only).")
    chosen = options.preset or options.rank is not None
    if options.plan and (chosen or options.keep or options.refit or options.remove):
        raise UsageError(
            "--plan already holds every rank and choice; drop --preset, --rank, --keep, --refit "
            "and --remove."
        )
    _check_targets(options)
    # No default before: one could not be told from what was typed.
    options.preset = options.preset or _PRESET
