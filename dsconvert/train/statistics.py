"""The statistics of a training: sums over steps, a line for each tick, and the progress bar."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsconvert.errors import TrainingError
from dsconvert.runs.folder import RunFolder
from dsconvert.runs.stats import StatsWriter
from dsconvert.train.state import SUMS, TrainState
from dsconvert.util.devices import peak_memory

Report = Callable[[Mapping[str, Any]], None]
"""Called with each line of statistics."""


@dataclass(kw_only=True)
class TrainStatistics:
    """Collects the statistics of each step and writes the lines of ``stats.jsonl``.

    Time that is spent on pictures, snapshots and checkpoints does not count as training
    (:meth:`pause`).
    """

    folder: RunFolder
    device: torch.device
    processes: int
    writer: StatsWriter | None
    """None in every process but the first."""
    report: Report | None
    tick_images: int
    tick_began: float
    """The clock at the last line, later by the pauses since."""
    losses: str = ""

    def count(self, state: TrainState, means: Tensor | None) -> None:
        """Add the means of a step to the sums of the next line.

        Raises:
            TrainingError: a mean is not finite.
        """
        if means is None:
            return
        values = dict(zip(SUMS, means.tolist(), strict=True))
        if not all(math.isfinite(v) for v in values.values()):
            found = self.folder.checkpoints()
            last = f"the newest good checkpoint is {found[-1]}" if found else "none was saved yet"
            raise TrainingError(
                f"the training broke down at {state.images / 1000:.2f} kimg: "
                + ", ".join(f"{k} is {v}" for k, v in values.items() if not math.isfinite(v))
                + f". Nothing of it was saved; {last}. Resume from there, or begin a new run "
                "from a snapshot (finetune) with a smaller learning rate, or without fp16."
            )
        for name, value in values.items():
            state.sums[name] += value
        state.steps += 1

    def note(self, images: int, **values: Any) -> None:
        """Write a line; only the first process does."""
        if self.writer is not None:
            row = self.writer.write(images, **values)
            if self.report is not None:
                self.report(row)

    def tick(self, state: TrainState, *, seconds: float) -> None:
        """Write the line of a tick, and start the sums of the next one.

        Args:
            state: its sums become zero.
            seconds: that the run has taken so far.
        """
        now = time.monotonic()
        spent, shown = now - self.tick_began, state.images - self.tick_images
        row: dict[str, Any] = {name: total / state.steps for name, total in state.sums.items()}
        row |= {
            "step": state.step,
            "seconds": seconds,
            "sec_per_kimg": spent / shown * 1000 if shown else None,
            "peak_memory_bytes": peak_memory(self.device),
            "processes": self.processes,
        }
        state.sums, state.steps = dict.fromkeys(SUMS, 0.0), 0
        self.tick_began, self.tick_images = now, state.images
        self.note(state.images, **row)

    def pause(self, seconds: float) -> None:
        """Leave out time that was not spent on training."""
        self.tick_began += seconds

    def detail(self, state: TrainState) -> str:
        """Return the text beside the progress bar: losses, pace, memory."""
        shown = state.images - self.tick_images
        spent = time.monotonic() - self.tick_began
        pace = f"{spent / shown * 1000:.1f} s/kimg, " if shown else ""
        memory = peak_memory(self.device) / 2**30
        if state.steps:  # right after a line there are no sums: the last losses stay
            self.losses = (
                f"G {state.sums['loss_g'] / state.steps:+.3f}, "
                f"D {state.sums['loss_d'] / state.steps:.3f}, "
            )
        return f"{self.losses}{pace}{memory:.1f} GiB, {state.images / 1000:.2f} kimg"

    def close(self) -> None:
        """Close the files."""
        if self.writer is not None:
            self.writer.close()
