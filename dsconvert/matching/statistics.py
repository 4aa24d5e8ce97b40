"""The statistics of a run: mean losses over some steps, and its progress."""

from __future__ import annotations

from typing import Any

import torch

from dsconvert.matching.protocols import RowWriter, Schedule
from dsconvert.util.devices import peak_memory
from dsconvert.util.progress import Progress

EVERY = 20
"""Steps between two lines of statistics."""


class LossStatistics:
    """Collects the losses of each step; makes lines and reports progress.

    Args:
        batch: latents a step.
        device: of the student.
        schedule: of the run.
        progress: called after each step; None: it is not reported.
    """

    def __init__(
        self, batch: int, device: torch.device, schedule: Schedule, *, progress: Progress | None
    ) -> None:
        self.writer: RowWriter | None = None
        self.rows: list[dict[str, Any]] = []
        """All lines of the run."""
        self._batch, self._device, self._schedule = batch, device, schedule
        self._progress = progress
        self._sums: dict[str, float] = {}
        self._count = 0

    def count(self, values: dict[str, float]) -> None:
        """Add the losses of one step."""
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def line(self, *, steps: int, seconds: float, rate: float, **values: Any) -> None:
        """Add a line with the mean losses since the last one.

        Args:
            steps: made so far.
            seconds: that the run has taken so far.
            rate: the learning rate of the last step.
            values: further columns.
        """
        means = {n: v / max(self._count, 1) for n, v in self._sums.items()}
        self._sums, self._count = {}, 0
        row = {"step": steps, "seconds": seconds, "memory": peak_memory(self._device),
               "rate": rate,
               **means, **values}  # fmt: skip
        images = steps * self._batch
        if self.writer is not None:
            row = self.writer.write(images, **row)
        self.rows.append({"images": images, **row})

    def report(self, steps: int, seconds: float, *, held_out: float | None) -> None:
        """Report progress; ``held_out`` is the best held-out distance so far."""
        if self._progress is None:
            return
        facts: tuple[str, ...] = ()
        if self._count:
            facts += (f"loss {self._sums['loss'] / self._count:.4f}",)
        if held_out is not None:
            facts += (f"held-out distance {held_out:.4f}",)
        self._progress(
            *self._schedule.position(steps, seconds), self._schedule.detail(steps, facts)
        )

    def close(self) -> None:
        """Close the files."""
        if self.writer is not None:
            self.writer.close()
