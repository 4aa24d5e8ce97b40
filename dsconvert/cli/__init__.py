"""The command line: the only place that prints, and the only one that knows exit codes.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from dsconvert.allocator import keep_freed_memory
from dsconvert.cli.codes import DONE, INTERRUPTED, code_of
from dsconvert.cli.parser import parse
from dsconvert.errors import DsconvertError

_RUNNING = frozenset({"train", "finetune", "distill", "eval", "generate", "compare"})
"""Commands that run networks many times over, for which freed memory is worth keeping."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit code (:mod:`dsconvert.cli.codes`)."""
    try:
        options = parse(list(sys.argv[1:] if argv is None else argv))
        if options.command in _RUNNING:
            keep_freed_memory()
        name = options.command.replace("-", "_")
        importlib.import_module(f"dsconvert.cli.commands.{name}").run(options)
        sys.stdout.flush()
    except DsconvertError as error:
        sys.stderr.write(f"dsconvert: {error}\n")
        return code_of(error)
    except KeyboardInterrupt:
        sys.stderr.write("dsconvert: interrupted; no file is half written.\n")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, say) has gone; keep the interpreter's last flush from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE
