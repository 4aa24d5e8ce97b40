"""``dsconvert bench``: time and memory on the device at hand."""

from __future__ import annotations

import argparse

from dsconvert.cli.parsers import arguments
from dsconvert.config.choices import DTYPES
from dsconvert.errors import UsageError

HELP = "time and memory on this machine: forward, forward + backward"


def device_options(command: argparse.ArgumentParser) -> None:
    """Where and how models run while they are timed."""
    command.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ... (default: the accelerator)"
    )
    command.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of the weights; amp: autocast in the device's usual type",
    )
    command.add_argument("--threads", type=arguments.whole, metavar="N", help="CPU threads")


def add(command: argparse.ArgumentParser) -> None:
    """Declare its options."""
    command.add_argument("snapshots", nargs="+", metavar="snapshot", help="the first is the 1x")
    command.add_argument(
        "--batch", type=arguments.whole, default=8, metavar="N", help="beside batch 1 (default 8)"
    )
    command.add_argument(
        "--train-batch",
        type=arguments.whole,
        default=4,
        metavar="N",
        help="of forward + backward (default 4; 0: leave it out)",
    )
    command.add_argument(
        "--repeats", type=arguments.whole, default=9, metavar="N", help="timed runs (default 9)"
    )
    device_options(command)
    command.add_argument("--channels-last", action="store_true", help="run in that memory layout")
    command.add_argument("--compile", action="store_true", help="through torch.compile")
    command.add_argument(
        "--keep-freed",
        action="store_true",
        help="keep freed memory instead of giving it back to the system, as training here does",
    )
    arguments.quiet(command)
    arguments.json(command)
    arguments.module(command)


def check(options: argparse.Namespace) -> None:
    """Refuse what can't be timed."""
    if options.batch < 1:
        raise UsageError("--batch 0 runs nothing; give 1 or more.")
    if options.repeats < 1:
        raise UsageError("--repeats 0 measures nothing; give 1 or more.")
    if len(set(options.snapshots)) < len(options.snapshots):
        raise UsageError("a snapshot is named twice; name each once.")
