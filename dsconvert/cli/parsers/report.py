"""``dsconvert report``: parameters and MACs."""

from __future__ import annotations

import argparse

from dsconvert.cli.parsers import arguments

HELP = "parameters and MACs, layer by layer"


def add(command: argparse.ArgumentParser) -> None:
    """Declare its options."""
    command.add_argument("snapshot")
    command.add_argument("other", nargs="?", help="a converted file, to compare")
    command.add_argument(
        "--ranks",
        type=arguments.ranks,
        metavar="1-9",
        help="what the whole generator would cost at each rank (preset fast)",
    )
    arguments.verbose(command)
    arguments.quiet(command)
    arguments.json(command)
    arguments.module(command)
