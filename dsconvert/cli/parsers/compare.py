"""``dsconvert compare``: the same latents through two files."""

from __future__ import annotations

import argparse

from dsconvert.cli.parsers import arguments

HELP = "the same latents through two files"


def add(command: argparse.ArgumentParser) -> None:
    """Declare its options."""
    command.add_argument("snapshot")
    command.add_argument("other")
    command.add_argument("--seeds", type=arguments.seeds, default=tuple(range(8)), metavar="0-7")
    arguments.label(command)
    arguments.truncation(command)
    command.add_argument(
        "--distance",
        type=arguments.samples,
        metavar="N",
        help="also FD-lite0 over N images (needs timm)",
    )
    arguments.output(command, required=True)
    arguments.quiet(command)
    arguments.json(command)
    arguments.module(command)
