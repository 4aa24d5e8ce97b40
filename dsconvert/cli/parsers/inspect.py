"""``dsconvert inspect``: what is in a file."""

from __future__ import annotations

import argparse

from dsconvert.cli.parsers import arguments

HELP = "what is in a file"


def add(command: argparse.ArgumentParser) -> None:
    """Declare its options."""
    command.add_argument("snapshot")
    arguments.verbose(command)
    arguments.json(command)
    arguments.module(command)
