"""Progress of long work: a line every half minute where there is no progress bar.

The library is quiet by default. Lines appear, under the logger ``dsconvert`` at level INFO, where

- that logger is enabled for INFO (``logging.basicConfig(level=logging.INFO)``),
- the environment variable ``DSCONVERT_PROGRESS`` is set (to anything but ``0``), or
- a function with a ``progress`` argument gets ``progress=True``.

In the last two cases they go to stderr if logging is not configured.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from dsconvert.util.numbers import clock_text

LOGGER = logging.getLogger("dsconvert")
EVERY = 30.0
"""Seconds between two lines."""
VARIABLE = "DSCONVERT_PROGRESS"
Progress = Callable[[str, int, int, str], None]
"""``progress(stage, done, total, detail)``, called during long work; ``detail`` may be empty."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


class Heartbeat:
    """Writes a line every :data:`EVERY` seconds while it is entered as a context.

    It has its own thread, because a single step may take longer than that.
    """

    def __init__(self, write: Callable[[str], None], *, every: float | None = None) -> None:
        self._write, self._every = write, EVERY if every is None else every
        self._began = time.monotonic()
        self._state: tuple[str, int, int, str] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Take the current state of the work; a single step that is done says nothing further."""
        self._state = None if done >= total == 1 else (stage, done, total, detail)

    def __enter__(self) -> Heartbeat:  # noqa: PYI034 - typing.Self is younger than 3.10
        self._thread = threading.Thread(target=self._run, name="dsconvert", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; it writes no line afterwards."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            text = "at work"  # no report yet: the function loads files or prepares
            if self._state is not None:
                stage, done, total, detail = self._state
                text = stage if total == 1 else f"{stage}: {done} of {total}"
                text += f", {detail}" if detail else ""
            self._write(f"{text}, after {clock_text(time.monotonic() - self._began)}")


@contextmanager
def stage(progress: Progress | None, name: str, detail: str = "") -> Generator[None, None, None]:
    """Report work as one step of the stage ``name`` while the context lasts.

    Args:
        progress: None: nothing is reported.
        name: of the stage.
        detail: what the step does.
    """
    if progress is not None:
        progress(name, 0, 1, detail)
    yield
    if progress is not None:
        progress(name, 1, 1, "")


def to_stderr(text: str) -> None:
    """Write one line; ignore a closed or broken stderr."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return


def _log_always(text: str) -> None:
    """Log a line whatever the logger's level; to stderr if logging is not configured."""
    if not LOGGER.hasHandlers():
        to_stderr(f"dsconvert: {text}")
        return
    LOGGER.handle(LOGGER.makeRecord(LOGGER.name, logging.INFO, __file__, 0, text, (), None))


def _writer(given: Any) -> Callable[[str], None] | None:
    """Return the function that writes the lines; None if the user wants none."""
    if given is False:
        return None
    if given is True or os.environ.get(VARIABLE, "0") not in ("", "0"):
        return _log_always
    return LOGGER.info if LOGGER.isEnabledFor(logging.INFO) else None


def reports_progress(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function with a ``progress`` keyword: it then also takes True, False and None.

    The function itself gets a callable or None, which follows from the argument, the environment
    variable and the logger (see the module).
    """

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        options: Any = kwargs
        if callable(options.get("progress")):
            return function(*args, **kwargs)
        write = _writer(options.get("progress"))
        if write is None:
            options["progress"] = None
            return function(*args, **kwargs)
        with Heartbeat(write) as beat:
            options["progress"] = beat
            return function(*args, **kwargs)

    return wrapped
