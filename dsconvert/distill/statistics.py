"""The statistics of a distillation: means over steps, ``stats.jsonl``, and the progress bar."""

from __future__ import annotations

from typing import Any

import torch

from dsconvert.config.distill import DistillConfig
from dsconvert.runs.stats import StatsWriter
from dsconvert.util.devices import peak_memory
from dsconvert.util.progress import Progress

EVERY = 20
"""Steps between two lines of statistics."""


class DistillStatistics:
    """Collects the losses of each step; writes lines and reports progress.

    Args:
        config: of the run.
        device: of the student.
        progress: called after each step; None: it is not reported.
    """

    def __init__(
        self, config: DistillConfig, device: torch.device, *, progress: Progress | None
    ) -> None:
        self.writer: StatsWriter | None = None
        self.rows: list[dict[str, Any]] = []
        """All lines of the run."""
        self._config, self._device, self._progress = config, device, progress
        self._sums: dict[str, float] = {}
        self._count = 0

    def count(self, values: dict[str, float]) -> None:
        """Add the losses of one step."""
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def line(self, *, steps: int, seconds: float, rate: float, **values: Any) -> None:
        """Write a line with the mean losses since the last one.

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
        images = steps * self._config.batch
        if self.writer is not None:
            row = self.writer.write(images, **row)
        self.rows.append({"images": images, **row})

    def report(self, steps: int, seconds: float, *, held_out: float | None) -> None:
        """Report progress; ``held_out`` is the best held-out distance so far."""
        if self._progress is None:
            return
        loss = self._sums["loss"] / self._count if self._count else None
        self._progress(
            *position(self._config, steps, seconds),
            detail(self._config, steps, loss=loss, held=held_out),
        )

    def close(self) -> None:
        """Close the files."""
        if self.writer is not None:
            self.writer.close()


def position(config: DistillConfig, steps: int, seconds: float) -> tuple[str, int, int]:
    """Return (stage, done, total) of a run: in steps, in seconds, or in percent if both end it.

    If only patience ends a run, its total is unknown and stays one step ahead.
    """
    if config.steps is not None and config.minutes is not None:
        return "distil, percent", int(100 * config.progress(steps, seconds)), 100
    if config.steps is not None:
        return "distil, steps", steps, config.steps
    if config.minutes is not None:
        total = max(1, round(60 * config.minutes))
        return "distil, seconds", min(round(seconds), total), total
    return "distil, steps", steps, steps + 1


def detail(config: DistillConfig, steps: int, *, loss: float | None, held: float | None) -> str:
    """Return the text beside the bar: step, mean loss of the last steps, held-out distance."""
    parts = [] if config.steps is not None and config.minutes is None else [f"step {steps}"]
    if loss is not None:
        parts.append(f"loss {loss:.4f}")
    if held is not None:
        parts.append(f"held-out distance {held:.4f}")
    if config.steps is None and config.minutes is None:
        parts.append(f"until {config.patience} evaluations bring nothing")
    return ", ".join(parts)
