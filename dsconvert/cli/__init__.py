"""The command line: the only place that prints, and the only one that knows exit codes.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from dsconvert.allocator import keep_freed_memory
from dsconvert.cli.parser import parse
from dsconvert.cli.stopping import Outcome, Stopped, terminable
from dsconvert.errors import DsconvertError

USAGE = 2
INTERRUPTED = 130
_RUNNING = frozenset({"train", "finetune", "distill", "eval", "generate", "compare"})
"""Commands that run networks many times over, for which freed memory is worth keeping."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 2 with one sentence for bad input, 130 when interrupted."""
    outcome: Outcome | None = None
    try:
        words = list(sys.argv[1:] if argv is None else argv)
        options = parse(words)
        options.words = words
        outcome = Outcome(options)
        if options.command in _RUNNING:
            keep_freed_memory()
        name = options.command.replace("-", "_")
        with terminable():
            importlib.import_module(f"dsconvert.cli.commands.{name}").run(options)
            sys.stdout.flush()
    except DsconvertError as error:
        sys.stderr.write(f"dsconvert: {error}\n")
        return USAGE
    except Stopped:
        sys.stderr.write("dsconvert: interrupted.\n")
        return INTERRUPTED
    except KeyboardInterrupt:
        sys.stderr.write(f"dsconvert: interrupted; {outcome or 'nothing was written'}.\n")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, say) has gone; keep the interpreter's last flush from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
