"""What can be typed, and what it means. Imports nothing but the standard library.

A command is two modules of its name: ``parsers/NAME.py`` says what it takes and
``commands/NAME.py``, imported only when it runs, does the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from dsconvert import __version__
from dsconvert.cli import codes
from dsconvert.cli.parsers import (
    bench,
    compare,
    convert,
    distill,
    export,
    finetune,
    generate,
    inspect,
    official_train,
    report,
    train,
)
from dsconvert.cli.parsers import eval as evaluate
from dsconvert.errors import UsageError

COMMANDS: dict[str, ModuleType] = {
    "convert": convert,
    "inspect": inspect,
    "report": report,
    "generate": generate,
    "compare": compare,
    "train": train,
    "finetune": finetune,
    "bench": bench,
    "distill": distill,
    "export": export,
    "eval": evaluate,
    "official-train": official_train,
}

_DESCRIPTION = """\
Make an existing GAN generator small and fast without losing its pictures.

  dsconvert generator.pkl --out fast.pkl     converts (the same as 'dsconvert convert ...')
  dsconvert inspect generator.pkl            what is in the file, without running anything in it
  dsconvert report generator.pkl [fast.pkl]  parameters and MACs, layer by layer
  dsconvert generate fast.pkl --seeds 0-15 --out grid.png
  dsconvert compare generator.pkl fast.pkl --seeds 0-7 --out side_by_side.png
  dsconvert train --data DIR|ZIP --cfg fastgan --kimg 1000 --out runs/
  dsconvert finetune fast.pkl --data DIR|ZIP --kimg 100 --out runs/
  dsconvert bench generator.pkl [fast.pkl]   time and memory on this machine
  dsconvert distill generator.pkl fast.pkl --minutes 30 --out fast2.pkl
  dsconvert export fast.pkl --format onnx --out fast.onnx
  dsconvert eval fast.pkl --data images.zip --against generator.pkl
"""


class _Parser(argparse.ArgumentParser):
    """Bad usage is an error like any other: one sentence, no usage dump."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def build() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="dsconvert",
        description=_DESCRIPTION,
        epilog="\n".join(f"exit code {c}: {text}" for c, text in codes.MEANINGS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dsconvert {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, module in COMMANDS.items():
        # An abbreviation that works today is ambiguous when an option is added tomorrow.
        module.add(commands.add_parser(name, help=module.HELP, allow_abbrev=False))
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
    check = getattr(COMMANDS[options.command], "check", None)
    if check is not None:
        check(options)
    return options
