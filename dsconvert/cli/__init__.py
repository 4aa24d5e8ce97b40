"""The command line: the only place that prints, and the only one that knows exit codes.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dsconvert.cli.parser import parse
from dsconvert.errors import DsconvertError

USAGE = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 2 with one sentence for bad input, 130 when interrupted."""
    options = parse(list(sys.argv[1:] if argv is None else argv))
    try:
        from dsconvert.cli import commands

        commands.COMMANDS[options.command](options)
    except DsconvertError as error:
        sys.stderr.write(f"dsconvert: {error}\n")
        return USAGE
    except KeyboardInterrupt:
        sys.stderr.write("dsconvert: interrupted; nothing was written.\n")
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return 0
