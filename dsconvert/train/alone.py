"""The lock of a run's folder, for all processes of one training."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from dsconvert.errors import OutputError, TrainingError
from dsconvert.runs.folder import RunFolder
from dsconvert.runs.lock import locked
from dsconvert.util.processes import Processes


@contextmanager
def alone_in(folder: RunFolder, procs: Processes) -> Generator[None, None, None]:
    """Hold the lock of a run's folder in the first process, for all processes of the training.

    Raises:
        TrainingError: another training holds it. Every process raises.
        OutputError: the disk can't take the lock's file. Every process raises.
    """
    with ExitStack() as stack:
        refused: TrainingError | OutputError | None = None
        if procs.rank == 0:
            try:
                stack.enter_context(locked(folder.path))
            except (TrainingError, OutputError) as error:
                refused = error
        refused = procs.share(refused)
        if refused is not None:
            raise refused
        yield
