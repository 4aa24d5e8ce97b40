"""``dsconvert generate``: a grid of images."""

from __future__ import annotations

import argparse

from dsconvert.cli.parsers import arguments

HELP = "a grid of images"


def add(command: argparse.ArgumentParser) -> None:
    """Declare its options."""
    command.add_argument("snapshot")
    command.add_argument("--seeds", type=arguments.seeds, default=tuple(range(16)), metavar="0-15")
    arguments.label(command)
    arguments.truncation(command)
    arguments.output(command, required=True)
    arguments.quiet(command)
    arguments.json(command)
    arguments.module(command)
