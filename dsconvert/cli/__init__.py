"""The command line: the only place that prints, and the only one that knows exit codes.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from dsconvert.cli import streams
from dsconvert.cli.codes import DONE, INTERRUPTED, USAGE, code_of, memory_sentence
from dsconvert.cli.parser import parse
from dsconvert.cli.stopping import Outcome, Stopped, terminable
from dsconvert.errors import DsconvertError, MissedTargetError
from dsconvert.util.allocator import keep_freed_memory

_RUN = {
    "convert": "convert:run",
    "inspect": "report:inspect",
    "report": "report:report",
    "generate": "generate:run",
    "compare": "compare:run",
    "train": "train:train",
    "finetune": "train:finetune",
    "bench": "bench:run",
    "distill": "distill:run",
    "export": "export:run",
    "eval": "eval:run",
    "official-train": "official_train:run",
}
"""Module (of this package) and function of each command; imported when the command runs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit code (:mod:`dsconvert.cli.codes`)."""
    streams.prepare()
    outcome: list[Outcome] = []
    try:
        _run(list(sys.argv[1:] if argv is None else argv), outcome)
    except DsconvertError as error:
        streams.complain(f"{error}{_kept(error, outcome)}")
        return code_of(error)
    except Stopped:
        streams.complain("interrupted.")
        return INTERRUPTED
    except KeyboardInterrupt:
        written = outcome[0] if outcome else "nothing was written"
        streams.complain(f"interrupted; {written}.")
        return INTERRUPTED
    except streams.ReaderGone:
        # The reader (head, for example) stopped; Python must not complain when it ends.
        streams.silence()
    except Exception as error:
        said = memory_sentence(error, outcome[0].command if outcome else None)
        if said is None:
            raise
        streams.complain(f"{said}{_kept(error, outcome)}")
        return USAGE
    return DONE


def _kept(error: Exception, outcome: list[Outcome]) -> str:
    """Return a sentence about the output that a command wrote before it failed, or nothing."""
    if not outcome or not outcome[0].failed_late or isinstance(error, MissedTargetError):
        return ""
    return f" {outcome[0]}."


def _run(words: list[str], outcome: list[Outcome]) -> None:
    """Run one command; ``outcome`` gets an object that reports written files when interrupted."""
    call = parse(words)
    if isinstance(call, int):  # the user asked for help, which is printed
        raise SystemExit(call)
    outcome.append(Outcome(call.command, call.options))
    if call.options.keeps_memory:
        keep_freed_memory()
    module, _, function = _RUN[call.command].partition(":")
    with terminable():
        getattr(importlib.import_module(f"dsconvert.cli.{module}"), function)(call)
        streams.flush()
