"""``dsconvert convert``, the main job."""

from __future__ import annotations

import argparse

from dsconvert.cli.parsers import arguments
from dsconvert.errors import UsageError
from dsconvert.records import INITS, PRESETS

_PRESET = "balanced"


HELP = "the main job"


def add(command: argparse.ArgumentParser) -> None:
    """Declare its options."""
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
        "--keep", action="append", default=[], metavar="GLOB", help="leave these convolutions"
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
    arguments.quiet(command)
    arguments.json(command)
    arguments.module(command)


def check(options: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    if not options.out and not options.plan_only:
        raise UsageError("convert needs --out FILE (or --plan-only).")
    if options.plan and (options.preset or options.rank is not None or options.keep):
        raise UsageError(
            "--plan already holds every rank and choice; drop --preset, --rank and --keep."
        )
    # No default before: one could not be told from what was typed.
    options.preset = options.preset or _PRESET
