"""Standard output and error as users have them: closed, full, in a legacy encoding."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import TextIOWrapper

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
    with suppress(OSError, ValueError):
        sys.stderr.write(f"dsconvert: {text}\n")
        sys.stderr.flush()


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
    """Send standard output nowhere: what is still buffered would fail again when Python ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
