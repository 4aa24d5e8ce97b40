"""Exit codes of the commands, and the error that leads to each."""

from __future__ import annotations

from dsconvert.errors import DsconvertError, MissedTargetError
from dsconvert.util.full_memory import is_memory_full

DONE = 0
USAGE = 2
MISSED = 3
INTERRUPTED = 130

MEANINGS = {
    DONE: "done",
    USAGE: "bad input or a failure, said in one sentence; nothing was written, unless it says so",
    MISSED: "a --target or --quality was missed; nothing was written, but with --best-effort",
    INTERRUPTED: "interrupted",
}
HELP = "exit codes: " + "; ".join(f"{code}: {text}" for code, text in MEANINGS.items()) + "."


def code_of(error: DsconvertError) -> int:
    """The exit code of a command that ends in ``error``."""
    return MISSED if isinstance(error, MissedTargetError) else USAGE


_SMALLER = {
    "convert": "give --device cpu, or --polish 0 (the polish needs most)",
    "train": "resume with --recompute blocks, or begin with a smaller --micro-batch",
    "finetune": "resume with --recompute blocks, or begin with a smaller --micro-batch",
    "distill": "give a smaller --batch, or --device cpu",
    "bench": "give a smaller --batch, or --device cpu",
}
"""What needs less memory, by command."""


def memory_sentence(error: Exception, command: str | None) -> str | None:
    """Return the message for an error of full memory; None for any other error.

    Args:
        error: that a command ended in.
        command: its name; None: it did not begin.
    """
    if not is_memory_full(error):
        return None
    first = (str(error).strip().splitlines() or ["no memory left"])[0][:200].rstrip(".")
    remedy = _SMALLER.get(command or "", "give --device cpu, or close other programs")
    return f"the memory is full ({first}): {remedy}."
