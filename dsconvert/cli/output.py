"""Write tables and JSON to standard output, and progress bars to standard error."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dsconvert.cli.streams import ReaderGone, writing
from dsconvert.report.jsonable import finite
from dsconvert.report.layout import WIDTH, folded
from dsconvert.report.text import plain
from dsconvert.util.foreign_text import printable
from dsconvert.util.progress import Heartbeat, to_stderr


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave the exit code to ``main``; rich would exit with 1."""
        raise ReaderGone


def say(*things: Table | str, quiet: bool = False) -> None:
    """Print tables and lines, folded to the terminal's width; 80 columns where there is none.

    A path may have blanks, at which it would be folded: :func:`say_whole` prints the lines that
    name an output.

    Args:
        things: in this order; an empty text is an empty line, and two of them are one.
        quiet: print the last one only.

    Raises:
        OutputError: stdout refuses.
    """
    # No markup: file and module names may have brackets in them.
    console = _Console(markup=False, highlight=False)
    console.width = max(WIDTH, console.width)
    gap = False
    with writing():
        for thing in things[-1:] if quiet else things:
            if isinstance(thing, str):
                if thing or not gap:
                    text = folded(plain(thing).plain, console.width)
                    console.print(text, soft_wrap=True)  # folded already, never within a word
                gap = not thing
            else:
                console.print(thing)
                gap = False


def emit(data: dict[str, Any]) -> None:
    """Print one JSON object.

    Raises:
        OutputError: stdout refuses.
    """
    with writing():
        sys.stdout.write(json.dumps(finite(data), default=str, allow_nan=False) + "\n")


def say_whole(line: str) -> None:
    """Print a line that must not be folded: one with a path, or a command to copy.

    Raises:
        OutputError: stdout refuses.
    """
    with writing():
        sys.stdout.write(printable(line) + "\n")


class Bars:
    """Progress on standard error: a bar a stage in a terminal, else a line every 30 s."""

    def __init__(self, *, hidden: bool) -> None:
        console = Console(stderr=True)
        self._lines = None if hidden or console.is_terminal else Heartbeat(to_stderr)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._hidden = hidden

    def __enter__(self) -> Bars:  # noqa: PYI034 - typing.Self is younger than 3.10
        if self._lines is not None:
            self._lines.__enter__()
        return self  # a bar starts with the first report, after the plan has been checked

    def __exit__(self, *_: object) -> None:
        if self._tasks:  # rich's stop() prints an empty line, also for bars that never began
            self._progress.stop()
        if self._lines is not None:
            self._lines.close()

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Show progress; the library calls this."""
        if self._hidden:
            return
        if self._lines is not None:
            self._lines(stage, done, total, detail)
            return
        self._progress.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, detail=detail)
        self._progress.update(self._tasks[stage], completed=done, total=total, detail=detail)

    def note(self, line: str) -> None:
        """Print a line that stays, above the bars."""
        if self._hidden:
            return
        if self._lines is not None:
            to_stderr(line)
        else:
            self._progress.console.print(line, markup=False, highlight=False)
