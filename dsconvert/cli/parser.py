"""What can be typed, and what it means. Imports nothing but the standard library."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from dsconvert import __version__
from dsconvert.errors import UsageError
from dsconvert.records import INITS, PRESETS

_SEED_LIMIT = 2**32
"""NumPy's legacy generator, which draws the official latents, takes no more."""

_PRESET = "balanced"

COMMANDS = ("convert", "inspect", "report", "generate", "compare")

_DESCRIPTION = """\
Make an existing GAN generator small and fast without losing its pictures.

  dsconvert generator.pkl --out fast.pkl     converts (the same as 'dsconvert convert ...')
  dsconvert inspect generator.pkl            what is in the file, without running anything in it
  dsconvert report generator.pkl [fast.pkl]  parameters and MACs, layer by layer
  dsconvert generate fast.pkl --seeds 0-15 --out grid.png
  dsconvert compare generator.pkl fast.pkl --seeds 0-7 --out side_by_side.png
"""


class _Parser(argparse.ArgumentParser):
    """Bad usage is an error like any other: one sentence, no usage dump."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


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


def _output(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument("--out", metavar="FILE", required=required, help="where to write")
    command.add_argument("--overwrite", action="store_true", help="replace an existing output")


def _quiet(command: argparse.ArgumentParser) -> None:
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="one JSON object on stdout, no table")


def _convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("snapshot", help="a network-snapshot.pkl or best_model.pkl")
    _output(command, required=False)
    command.add_argument("--preset", choices=PRESETS, help=f"default: {_PRESET}")
    command.add_argument("--rank", type=whole, metavar="N", help="one rank for every rewrite")
    command.add_argument(
        "--init",
        choices=INITS,
        default="fit",
        help="fit: to activations (no data needed); svd: kernels only; random: to train anew",
    )
    command.add_argument(
        "--keep", action="append", default=[], metavar="GLOB", help="leave these convolutions"
    )
    command.add_argument("--plan", metavar="FILE", help="use an edited plan instead of a preset")
    command.add_argument(
        "--plan-only", action="store_true", help="show the plan (with --out: write it as JSON)"
    )
    command.add_argument(
        "--calibrate", type=whole, metavar="N", help="latents for fit and statistics; 0: off"
    )
    command.add_argument("--seed", type=seed, default=0, help="of every random draw (default 0)")
    command.add_argument(
        "--drop", action="append", default=[], metavar="KEY", help="leave an entry out (say, D)"
    )
    _quiet(command)
    _json(command)


def build() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="dsconvert",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dsconvert {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _convert(commands.add_parser("convert", help="the main job", allow_abbrev=False))

    inspect = commands.add_parser("inspect", help="what is in a file")
    inspect.add_argument("snapshot")
    _json(inspect)

    report = commands.add_parser("report", help="parameters and MACs, layer by layer")
    report.add_argument("snapshot")
    report.add_argument("other", nargs="?", help="a converted file, to compare")
    _json(report)

    generate = commands.add_parser("generate", help="a grid of images")
    generate.add_argument("snapshot")
    generate.add_argument("--seeds", type=seeds, default=tuple(range(16)), metavar="0-15")
    generate.add_argument("--class", dest="label", type=whole, metavar="N", help="class index")
    _output(generate, required=True)
    _quiet(generate)
    _json(generate)

    compare = commands.add_parser("compare", help="the same latents through two files")
    compare.add_argument("snapshot")
    compare.add_argument("other")
    compare.add_argument("--seeds", type=seeds, default=tuple(range(8)), metavar="0-7")
    compare.add_argument("--class", dest="label", type=whole, metavar="N", help="class index")
    compare.add_argument(
        "--distance",
        type=samples,
        metavar="N",
        help='also the feature distance over N images (needs "dsconvert[metrics]")',
    )
    _output(compare, required=True)
    _quiet(compare)
    _json(compare)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; the first word may be a file (then it is ``convert``).

    Raises:
        UsageError: an unknown option, a bad value, or options that contradict each other.
    """
    parser = build()
    words = list(argv)
    if words and words[0] not in COMMANDS and words[0] not in ("-h", "--help", "--version"):
        words.insert(0, "convert")
    options = parser.parse_args(words)
    if options.command is None:
        parser.print_help()
        parser.exit(2)
    if options.command == "convert":
        if not options.out and not options.plan_only:
            raise UsageError("convert needs --out FILE (or --plan-only).")
        if options.plan and (options.preset or options.rank is not None or options.keep):
            raise UsageError(
                "--plan already holds every rank and choice; drop --preset, --rank and --keep."
            )
        # No default before: one could not be told from what was typed.
        options.preset = options.preset or _PRESET
    return options
