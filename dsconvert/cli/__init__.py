"""The command line: the only place that prints, and the only one that knows exit codes.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from dsconvert.cli import streams
from dsconvert.cli.codes import DONE, INTERRUPTED, code_of
from dsconvert.cli.parser import parse
from dsconvert.cli.stopping import Outcome, Stopped, terminable
from dsconvert.errors import DsconvertError
from dsconvert.util.allocator import keep_freed_memory

_RUNNING = frozenset({"train", "finetune", "distill", "eval", "generate", "compare"})
"""Commands that run networks many times over, for which freed memory is worth keeping."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit code (:mod:`dsconvert.cli.codes`)."""
    streams.prepare()
    outcome: list[Outcome] = []
    try:
        _run(list(sys.argv[1:] if argv is None else argv), outcome)
    except DsconvertError as error:
        streams.complain(str(error))
        return code_of(error)
    except Stopped:
        streams.complain("interrupted.")
        return INTERRUPTED
    except KeyboardInterrupt:
        what = outcome[0] if outcome else "nothing was written"
        streams.complain(f"interrupted; {what}.")
        return INTERRUPTED
    except streams.ReaderGone:
        # The reader (head, say) has what it wanted; the interpreter must not complain at its end.
        streams.silence()
    return DONE


def _run(words: list[str], outcome: list[Outcome]) -> None:
    """Run one command; ``outcome`` gets what tells, after an interruption, what was written."""
    try:
        options = parse(words)
    except SystemExit:  # --help and --version, printed by argparse
        streams.flush()
        raise
    except BrokenPipeError as error:  # from the same print, in older patch releases of Python
        raise streams.ReaderGone from error
    options.words = words
    outcome.append(Outcome(options))
    if options.command in _RUNNING:
        keep_freed_memory()
    name = options.command.replace("-", "_")
    with terminable():
        importlib.import_module(f"dsconvert.cli.commands.{name}").run(options)
        streams.flush()
