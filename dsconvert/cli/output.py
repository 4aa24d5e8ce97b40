"""What the command line says: tables and JSON on stdout, progress bars on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dsconvert.cli.streams import ReaderGone, flush, silence
from dsconvert.errors import OutputError
from dsconvert.report.jsonable import finite

_WIDE = 150


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave the exit code to ``main``; rich would exit with 1."""
        raise ReaderGone


@contextmanager
def _stdout() -> Generator[None, None, None]:
    """Turn a stdout that refuses (a full disk) into one sentence; a reader that left is no error.

    Raises:
        OutputError: what was said could not be written.
    """
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGone from error
    except OSError as error:
        silence()
        raise OutputError(f"can't write to standard output: {error}; send it elsewhere.") from error
    flush()


def say(*things: Table | str) -> None:
    """Print tables and lines.

    Raises:
        OutputError: stdout refuses.
    """
    # A pipe has no width of its own; a table folded to 80 columns helps nobody. No markup: file and
    # module names may have brackets in them.
    width = None if sys.stdout.isatty() else _WIDE
    console = _Console(width=width, markup=False, highlight=False, soft_wrap=False)
    with _stdout():
        for thing in things:
            console.print(thing)


def emit(data: dict[str, Any]) -> None:
    """Print one JSON object.

    Raises:
        OutputError: stdout refuses.
    """
    with _stdout():
        sys.stdout.write(json.dumps(finite(data), default=str, allow_nan=False) + "\n")


class Bars:
    """A progress bar a stage, on stderr, with the time that is left; a terminal only."""

    def __init__(self, *, hidden: bool) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
            disable=hidden or not console.is_terminal,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:  # noqa: PYI034 - typing.Self is younger than 3.10
        return self  # the display starts with the first report, after the plan has been checked

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """What the library calls as its work goes on."""
        self._progress.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, detail=detail)
        self._progress.update(self._tasks[stage], completed=done, total=total, detail=detail)
