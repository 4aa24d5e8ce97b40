"""The lock of a run's folder: one process at a time trains there.

The operating system holds the lock and frees it when the process ends, however it ends, so that a
killed run never blocks the next one. This module imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from dsconvert.errors import OutputError, TrainingError

try:
    import fcntl
except ImportError:  # Windows: a run is not locked there
    fcntl = None

_LOCK = ".lock"
"""The file that is locked; it stays in the folder, and is of no meaning by itself."""


@contextmanager
def locked(folder: Path) -> Generator[None, None, None]:
    """Hold the lock of a run's folder, which is made if it is missing.

    A file system without locks holds none.

    Raises:
        TrainingError: another process trains in the folder.
        OutputError: the disk can't take the folder or the file.
    """
    path = folder / _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"the run's folder {folder} can't be written to: {error}.") from error
    try:
        _lock(handle, folder)
        try:
            yield
        finally:
            # A child that was forked meanwhile has the file open, too: closing it frees nothing.
            if fcntl is not None:
                with suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TrainingError(
            f"another process trains in {folder}: wait for its end, or name another folder."
        ) from None
    except OSError:  # a file system without locks
        return
