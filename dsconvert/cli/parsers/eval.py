"""``dsconvert eval``: how good a file's images are."""

from __future__ import annotations

import argparse

from dsconvert.cli.parsers import arguments
from dsconvert.errors import UsageError

HELP = "distances to real images, to the original, or both, with their noise floors"
METRICS = ("fid", "kid", "fd-lite0")


def _metrics(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(t.strip().lower() for t in text.split(",") if t.strip()))
    unknown = [n for n in names if n not in METRICS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or 'nothing'} is not among {', '.join(METRICS)}"
        )
    return names


_FEWEST = 20
"""A 95 % interval of fewer resamples would rest on none outside it."""


def _resamples(text: str) -> int:
    value = arguments.whole(text)
    if value < _FEWEST:
        raise argparse.ArgumentTypeError(
            f"{text} resamples give no 95 % interval; {_FEWEST} or more do"
        )
    return value


def add(command: argparse.ArgumentParser) -> None:
    """Declare its options."""
    command.add_argument("snapshot")
    command.add_argument("--data", metavar="DIR|ZIP", help="real images")
    command.add_argument("--against", metavar="FILE", help="the original")
    command.add_argument(
        "--metrics",
        type=_metrics,
        default=("fd-lite0",),
        metavar="LIST",
        help="of fid, kid (both download Inception once) and FD-lite0 (fd-lite0, the default)",
    )
    command.add_argument(
        "--samples",
        type=arguments.samples,
        metavar="N",
        help="images on each side (default 1000, at most half of the real images)",
    )
    command.add_argument(
        "--bootstrap", type=_resamples, default=100, metavar="N", help="resamples (100)"
    )
    command.add_argument("--seed", type=arguments.seed, default=1)
    command.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, ... (a GPU where there is one)"
    )
    arguments.quiet(command)
    arguments.json(command)
    arguments.module(command)


def check(options: argparse.Namespace) -> None:
    """Refuse a measurement against nothing."""
    if not options.data and not options.against:
        raise UsageError("eval needs something to measure against: --data, --against, or both.")
