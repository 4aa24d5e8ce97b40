"""``dsconvert finetune``: go on training a file's generator."""

from __future__ import annotations

import argparse

from dsconvert.cli.parsers import training
from dsconvert.errors import UsageError

HELP = "go on training a file's generator, converted or not"
_KIMG = 100.0


def add(command: argparse.ArgumentParser) -> None:
    """Declare its options."""
    command.add_argument("snapshot", help="a snapshot, for example a converted one")
    training.where(command)
    command.add_argument(
        "--new-discriminator", action="store_true", help="even where the file has one"
    )
    training.recipe(command, kimg=_KIMG)
    training.watching(command)
    training.speed(command)


def check(options: argparse.Namespace) -> None:
    """Refuse what does not go together."""
    if not options.data:
        raise UsageError("finetune needs --data DIR|ZIP.")
    training.fill(options, {"kimg": _KIMG})
