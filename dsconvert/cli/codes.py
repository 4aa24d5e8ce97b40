"""Exit codes of the commands, and the error that leads to each."""

from __future__ import annotations

from dsconvert.errors import DsconvertError, MissedTargetError

DONE = 0
USAGE = 2
MISSED = 3
INTERRUPTED = 130

MEANINGS = {
    DONE: "done",
    USAGE: "bad input or a failure, said in one sentence; nothing was written",
    MISSED: "a --target or --quality was missed; nothing was written, but with --best-effort",
    INTERRUPTED: "interrupted",
}
HELP = "exit codes: " + "; ".join(f"{code}: {text}" for code, text in MEANINGS.items()) + "."


def code_of(error: DsconvertError) -> int:
    """The exit code of a command that ends in ``error``."""
    return MISSED if isinstance(error, MissedTargetError) else USAGE
