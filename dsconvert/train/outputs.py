"""The pictures and snapshots that a run writes: real images, sample grids, and the networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import image_tensor
from dsconvert.config.train import TrainConfig
from dsconvert.data.images import ImageSet
from dsconvert.data.pictures import grid, save_picture
from dsconvert.data.stream import to_range
from dsconvert.model.inputs import map_tensors
from dsconvert.model.observe import evaluating
from dsconvert.runs.folder import RunFolder
from dsconvert.train.evaluator import FDLite0Evaluator
from dsconvert.train.state import Latents, Save, TrainState
from dsconvert.util.processes import Processes

NOISE_SEED = 1
Note = Callable[..., Mapping[str, Any] | None]
"""``note(images, **values)`` adds a line of statistics."""


@torch.no_grad()
def sample_images_of(model: nn.Module, inputs: Sequence[tuple[Any, ...]]) -> Tensor:
    """Return the images of ``inputs`` (forward arguments) on the CPU, with fixed noise."""
    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(NOISE_SEED)
        return torch.cat([image_tensor(model(*args)).float().cpu() for args in inputs])


def grid_inputs(
    data: ImageSet, config: TrainConfig, latents: Latents, device: torch.device
) -> list[tuple[Any, ...]]:
    """Return the forward arguments of a grid: the same latents and classes in a whole run."""
    random = torch.Generator().manual_seed(config.seed)
    picks = torch.arange(config.grid) % len(data)
    inputs: list[tuple[Any, ...]] = []
    for rows in picks.split(8):
        args = latents(data.label(rows), random)
        inputs.append(map_tensors(lambda t: t.to(device), args))
    return inputs


@dataclass(kw_only=True)
class RunOutputs:
    """Writes the pictures and snapshots of a run.

    Only the first process writes; the others wait.
    """

    config: TrainConfig
    data: ImageSet
    folder: RunFolder
    latents: Latents
    procs: Processes
    save: Save | None
    evaluator: FDLite0Evaluator | None = None
    snapshot: Path | None = None
    """The newest snapshot of this call."""

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.procs.rank == 0

    def write_reals(self) -> None:
        """Write a sheet of the first images of the data."""
        if self.first:
            count = min(self.config.grid, len(self.data))
            reals = torch.stack([self.data.image(i)[0] for i in range(count)])
            sheet = grid(to_range(reals, torch.device("cpu")))
            save_picture(sheet, self.folder.reals, overwrite=True)

    def write_grid(self, state: TrainState) -> None:
        """Write a grid of samples of the moving average."""
        if self.first:
            inputs = grid_inputs(self.data, self.config, self.latents, self.procs.device)
            sheet = grid(sample_images_of(state.ema, inputs))
            save_picture(sheet, self.folder.grid(state.images), overwrite=True)

    def write_snapshot(self, state: TrainState, note: Note) -> None:
        """Evaluate the moving average, if the settings ask for it, and write a snapshot.

        Older snapshots are deleted as ``keep_last`` says.
        """
        if self.first:
            better = self._evaluate(state, note)
            if self.save is not None:
                self.snapshot = self.folder.snapshot(state.images)
                self.save(state, self.snapshot)
                if better:
                    self.save(state, self.folder.best)
                if self.config.keep_last:
                    for old in self.folder.snapshots()[: -self.config.keep_last]:
                        old.unlink(missing_ok=True)
        self.procs.wait()

    def evaluate_start(self, state: TrainState, note: Note) -> None:
        """Evaluate the moving average before the first step, as the first ``best.pkl``."""
        if self.first and self._evaluate(state, note) and self.save is not None:
            self.save(state, self.folder.best)
        self.procs.wait()

    def _evaluate(self, state: TrainState, note: Note) -> bool:
        """Return whether the average is the nearest to the data so far; False if not measured."""
        if self.evaluator is None:
            return False
        value = self.evaluator(state.ema, self.latents)
        better = state.best is None or value < state.best
        state.best = value if better else state.best
        floor = {} if self.evaluator.floor is None else {"fd_floor": self.evaluator.floor}
        note(state.images, fd_lite0=value, fd_images=self.evaluator.count, **floor)
        return better
