"""Kinds of values and options that several commands share."""

from __future__ import annotations

import argparse
import math

_SEED_LIMIT = 2**32
"""NumPy's legacy generator, which draws the official latents, takes no more."""


def seeds(text: str) -> tuple[int, ...]:
    """``"0-3,7"`` to ``(0, 1, 2, 3, 7)``."""
    found: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            raise argparse.ArgumentTypeError(f"{text!r} is not like 0-3,7")
        first, last = int(low), int(high) if dash else int(low)
        if last < first or last - first > 9999:
            raise argparse.ArgumentTypeError(f"{part.strip()!r} is an empty or huge range")
        if last >= _SEED_LIMIT:
            raise argparse.ArgumentTypeError(f"{last} is too large for a seed (below 2^32)")
        found.extend(range(first, last + 1))
    return tuple(found)


def ranks(text: str) -> tuple[int, ...]:
    """``"1-9"`` to the ranks it names."""
    values = seeds(text)
    if min(values) < 1 or max(values) > 1000:
        raise argparse.ArgumentTypeError("ranks begin at 1, and k^2 is exact (9 for 3x3)")
    return values


def whole(text: str) -> int:
    """A whole number that is not negative."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def seed(text: str) -> int:
    """One seed."""
    value = whole(text)
    if value >= _SEED_LIMIT:
        raise argparse.ArgumentTypeError(f"{value} is too large for a seed (below 2^32)")
    return value


def samples(text: str) -> int:
    """How many images a distance is taken over."""
    value = whole(text)
    if value < 2:
        raise argparse.ArgumentTypeError("a distance needs 2 images or more")
    return value


def output(command: argparse.ArgumentParser, *, required: bool) -> None:
    """Where the result goes."""
    command.add_argument("--out", metavar="FILE", required=required, help="where to write")
    command.add_argument("--overwrite", action="store_true", help="replace an existing output")


def quiet(command: argparse.ArgumentParser) -> None:
    """No progress, and of what is said the last line only."""
    command.add_argument(
        "--quiet", action="store_true", help="print errors and the last line, nothing else"
    )


def verbose(command: argparse.ArgumentParser) -> None:
    """Details that the tables leave out."""
    command.add_argument("--verbose", action="store_true", help="every detail and every reason")


def json(command: argparse.ArgumentParser) -> None:
    """Machine-readable output."""
    command.add_argument("--json", action="store_true", help="one JSON object on stdout, no table")


def label(command: argparse.ArgumentParser) -> None:
    """The class of a conditional generator."""
    command.add_argument("--class", dest="label", type=whole, metavar="N", help="class index")


def truncation(command: argparse.ArgumentParser) -> None:
    """How far latents are pulled towards their mean, as the official ``gen_images.py`` calls it."""
    command.add_argument(
        "--trunc",
        type=float,
        default=1.0,
        metavar="PSI",
        help="truncation psi of a StyleGAN2 generator (default 1: none)",
    )


def count(text: str) -> int:
    """A whole number of 1 or more."""
    value = whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def positive(text: str) -> float:
    """A number above 0."""
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def weight(text: str) -> float:
    """A number of 0 or more."""
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is below 0")
    return value


def share(text: str) -> float:
    """A number between 0 and 1."""
    value = weight(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is above 1")
    return value


def shape(text: str) -> tuple[int, ...]:
    """``"3,64,64"`` to ``(3, 64, 64)``."""
    parts = text.split(",")
    if not all(p.strip().isdigit() and int(p) for p in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 256 or 3,64,64")
    return tuple(int(p) for p in parts)


def module(command: argparse.ArgumentParser) -> None:
    """How to build the generator of a codebase that no adapter knows."""
    group = command.add_argument_group(
        "a state dict of any other code",
        "Importing a module runs it: --module runs your own code, because you ask for it; nothing "
        "in a file runs, and no file can ask for a module.",
    )
    group.add_argument(
        "--module",
        metavar="PACKAGE.PATH:FACTORY",
        help="what builds the architecture, called without arguments",
    )
    group.add_argument("--key", metavar="NAME", help="the entry that holds its state dict")
    group.add_argument(
        "--input",
        action="append",
        default=[],
        type=shape,
        metavar="256",
        help="shape of one latent (repeat for further arguments of the call)",
    )
