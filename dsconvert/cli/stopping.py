"""An interruption (Ctrl-C, or a scheduler's SIGTERM), and one line about the files it leaves."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dsconvert.config.base import Job
from dsconvert.runs.folder import RunFolder


class Stopped(KeyboardInterrupt):
    """An interruption after which the command itself has reported the saved files."""


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def terminable() -> Generator[None, None, None]:
    """Let SIGTERM end a command as Ctrl-C does, so that temporary files and children go with it."""
    mine = threading.current_thread() is threading.main_thread()
    # A handler that a launcher or a test has set stays.
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Outcome:
    """The files that a command has written since this object was made.

    Args:
        command: its name.
        options: its settings.
    """

    def __init__(self, command: str, options: Job) -> None:
        self.command, self._runs = command, options.makes_runs
        self._keeps = options.goes_on
        self._out = None if options.output is None else Path(options.output)
        self._resumed = options.resumed
        self._before = self._state()

    def _state(self) -> frozenset[tuple[object, ...]]:
        """The present output: the names of the runs, or the file's identity and time."""
        if self._out is None:
            return frozenset()
        try:
            if self._runs:
                return frozenset((p.name,) for p in self._out.iterdir())
            found = self._out.stat()
        except (OSError, ValueError):  # no file, or a name that none can have
            return frozenset()
        return frozenset({(found.st_ino, found.st_size, found.st_mtime_ns)})

    @property
    def written(self) -> bool:
        """Whether the output is new."""
        return bool(self._state() - self._before)

    @property
    def failed_late(self) -> bool:
        """Whether a command that fails now leaves a new output; a training says itself what."""
        return self.written and not self._runs

    def __str__(self) -> str:
        """The end of a sentence that begins with "interrupted"."""
        if self.command == "official-train":
            return "what the official trainer saved is in its own run folder"
        if self._resumed is not None:
            return f"its newest checkpoint is untouched; go on with: {resuming(self._resumed)}"
        new = self._state() - self._before
        if self._runs and self._out is not None and new:
            return "; ".join(_of_run(self._out / str(name)) for (name,) in sorted(new, key=str))
        if self._keeps is not None and new:
            return f"the images so far are in {self._out}; {self._keeps} goes on"
        if new:
            return f"{self._out} is written whole"
        if self._out is not None and self._before and not self._runs:
            return f"nothing was written, {self._out} is as it was"
        return "nothing was written"


def resuming(run: Path | str) -> str:
    """Return the command that continues a training, as a shell reads it."""
    return shlex.join(["dsconvert", "train", "--resume", str(run)])


def _of_run(folder: Path) -> str:
    if RunFolder(folder).checkpoints():
        return f"saved; go on with: {resuming(folder)}"
    return f"{folder} holds no checkpoint yet: delete it and start again"
