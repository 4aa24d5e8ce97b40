"""``dsconvert distill``: a converted generator learns the rest from its original."""

from __future__ import annotations

import argparse

from dsconvert.cli.parsers import arguments
from dsconvert.errors import UsageError

HELP = "a converted generator learns from its original; needs no data"


def add(command: argparse.ArgumentParser) -> None:
    """Declare its options."""
    command.add_argument("snapshot", help="the original: the teacher")
    command.add_argument("student", help="its conversion")
    arguments.output(command, required=True)
    ends = command.add_argument_group("when to stop (at least one)")
    ends.add_argument("--minutes", type=arguments.positive, metavar="M", help="after so long")
    ends.add_argument("--steps", type=arguments.count, metavar="N", help="after so many steps")
    ends.add_argument(
        "--patience",
        type=arguments.whole,
        default=0,
        metavar="N",
        help="when N held-out evaluations in a row bring less than one percent",
    )
    ends.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="what --minutes are (wall)"
    )
    how = command.add_argument_group("how (defaults are for a fitted conversion)")
    how.add_argument("--batch", type=arguments.count, metavar="N")
    how.add_argument(
        "--lr", type=arguments.positive, metavar="RATE", help="relative to each tensor"
    )
    how.add_argument("--optimiser", choices=("muon", "adam"))
    how.add_argument("--statistics", choices=("frozen", "batch"), help="of batch normalisation")
    how.add_argument(
        "--blockwise", type=arguments.share, metavar="SHARE", help="of the run, block by block"
    )
    for term, what in (
        ("image", "the image"),
        ("blocks", "each block's output"),
        ("features", "the discriminator's backbone (0 needs no extra installed)"),
        ("adversarial", "a discriminator's judgement (0: none)"),
    ):
        how.add_argument(
            f"--{term}", type=arguments.weight, metavar="WEIGHT", help=f"weight of {what}"
        )
    how.add_argument("--seed", type=arguments.seed, default=0)
    run = command.add_argument_group("the run")
    run.add_argument("--run", metavar="FOLDER", help="curves, grids, report (OUT's name and -run)")
    run.add_argument("--resume", action="store_true", help="continue the run in that folder")
    run.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (a GPU where there is one)")
    arguments.quiet(command)
    arguments.json(command)
    arguments.module(command)


def check(options: argparse.Namespace) -> None:
    """Refuse a run without an end."""
    if options.minutes is None and options.steps is None and not options.patience:
        raise UsageError("distill needs an end: --minutes M, --steps N or --patience N.")
