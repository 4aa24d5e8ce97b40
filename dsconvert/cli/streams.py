"""Standard output and error as users have them: closed, full, in a legacy encoding."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import TextIO

from dsconvert.errors import OutputError


class ReaderGone(Exception):  # noqa: N818 - no error: it has read what it wanted
    """Whoever read standard output has stopped: ``head``, say.

    A class of its own, since the pipe to a process of ours may break too, and that is an error.
    """


def prepare() -> None:
    """Make both streams take whatever is written to them.

    A character that the encoding of a pipe lacks (a file name on Windows, say) is written as an
    escape: an error would come after the work, and tell nothing. A stream that was closed goes
    nowhere, and its descriptor is taken, so that no output file gets it and the messages of some
    library with it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def complain(text: str) -> None:
    """Write one line to standard error, which may refuse; there is no other place to say so."""
    try:
        sys.stderr.write(f"dsconvert: {text}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        _to_nowhere(sys.stderr)


def flush() -> None:
    """Write out what is buffered; here, where a failure can still be answered.

    Raises:
        ReaderGone: nobody reads on.
        OutputError: standard output refuses (a full disk).
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ReaderGone from error
    except OSError as error:
        silence()
        raise OutputError(f"can't write to standard output: {error}; send it elsewhere.") from error


def silence() -> None:
    """Send standard output nowhere."""
    _to_nowhere(sys.stdout)


def _to_nowhere(stream: TextIO) -> None:
    """Drop the text that ``stream`` still buffers.

    Python flushes it once more at exit; a failure there would replace the exit code (by 120).
    """
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
