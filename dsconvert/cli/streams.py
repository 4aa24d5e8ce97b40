"""Standard output and error, also when they are closed, full, or in a legacy encoding."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import TextIO

from dsconvert.errors import OutputError
from dsconvert.util.foreign_text import printable


class ReaderGone(Exception):  # noqa: N818 - not an error
    """The reader of standard output (``head``, for example) has stopped.

    A separate class, since a broken pipe to one of our own processes is an error.
    """


def prepare() -> None:
    """Make both streams accept any text.

    A character that the encoding of a pipe lacks (in a file name on Windows, for example) is
    written as an escape: an error would come after the work. A closed stream is replaced by
    /dev/null, and its descriptor is occupied, so that no output file gets the descriptor and with
    it the messages of some library.
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
    """Write one message to standard error; a failure is ignored: there is no other place for it.

    A message may hold names from a file; their control characters become escapes.
    """
    try:
        sys.stderr.write(f"dsconvert: {printable(text)}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        _to_nowhere(sys.stderr)


@contextmanager
def writing() -> Generator[None, None, None]:
    """Write to standard output, where a failure can still be answered, and flush it at the end.

    Raises:
        ReaderGone: nobody reads on.
        OutputError: standard output refuses (a full disk).
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ReaderGone from error
    except OSError as error:
        silence()
        raise OutputError(f"can't write to standard output: {error}; send it elsewhere.") from error


def flush() -> None:
    """Write the buffered output; errors as in :func:`writing`."""
    with writing():
        pass


def silence() -> None:
    """Send standard output to /dev/null."""
    _to_nowhere(sys.stdout)


def _to_nowhere(stream: TextIO) -> None:
    """Drop the text that ``stream`` still buffers.

    Python flushes it once more at exit; a failure there would replace the exit code (by 120).
    """
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
