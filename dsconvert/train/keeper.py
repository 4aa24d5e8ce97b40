"""What a run keeps: grids, snapshots with the best among them, checkpoints and the way back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsconvert.data.images import ImageSet
from dsconvert.data.stream import to_range
from dsconvert.errors import TrainingError
from dsconvert.runs.checkpoint import (
    checkpoint_name,
    checkpoints,
    newest,
    prune,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from dsconvert.train.config import TrainConfig
from dsconvert.train.grids import sample_grid, save_grid
from dsconvert.train.judge import Judge
from dsconvert.train.step import Latents, Networks
from dsconvert.util.processes import Processes

Save = Callable[[Networks, Path], None]
"""Writes a snapshot of the networks to a path (which it may replace)."""
BEST = "best.pkl"
FOLDERS = ("checkpoints", "snapshots", "grids")


@dataclass(kw_only=True)
class Keeper:
    """Writes a run's files; only the first process does, the others wait."""

    config: TrainConfig
    data: ImageSet
    out: Path
    latents: Latents
    procs: Processes
    save: Save | None
    judge: Judge | None = None
    snapshot: Path | None = None
    began: float = field(default_factory=time.monotonic)
    saved_at: float = field(default_factory=time.monotonic)
    seconds_before: float = 0.0
    """Of the run's earlier calls."""

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.procs.rank == 0

    @property
    def seconds(self) -> float:
        """Of the whole run so far."""
        return self.seconds_before + time.monotonic() - self.began

    def show_reals(self) -> None:
        """The first images of the data."""
        if self.first:
            count = min(self.config.grid, len(self.data))
            reals = torch.stack([self.data.image(i)[0] for i in range(count)])
            save_grid(to_range(reals, torch.device("cpu")), self.out / "reals.png")

    def grid_inputs(self) -> list[tuple[Any, ...]]:
        """The same latents and classes for every grid of a run."""
        random = torch.Generator().manual_seed(self.config.seed)
        picks = torch.arange(self.config.grid) % len(self.data)
        inputs: list[tuple[Any, ...]] = []
        for rows in picks.split(8):
            args = self.latents(self.data.label(rows), random)
            inputs.append(
                tuple(a.to(self.procs.device) if isinstance(a, Tensor) else a for a in args)
            )
        return inputs

    def show(self, nets: Networks) -> None:
        """A grid of the moving average."""
        if self.first:
            path = self.out / "grids" / f"{nets.images:09d}.png"
            save_grid(sample_grid(nets.ema, self.grid_inputs()), path)

    def take_snapshot(self, nets: Networks, note: Callable[..., Mapping[str, Any] | None]) -> None:
        """Judge the average, if that was asked for, and write a snapshot.

        Args:
            nets: what is written.
            note: writes a line of statistics.
        """
        if self.first:
            better = self._judged(nets, note)
            if self.save is not None:
                folder = self.out / "snapshots"
                self.snapshot = folder / f"network-{nets.images:09d}.pkl"
                self.save(nets, self.snapshot)
                if better:
                    self.save(nets, folder / BEST)
                if self.config.keep_last:
                    for old in sorted(folder.glob("network-*.pkl"))[: -self.config.keep_last]:
                        old.unlink(missing_ok=True)
        self.procs.wait()

    def judge_start(self, nets: Networks, note: Callable[..., Mapping[str, Any] | None]) -> None:
        """Judge the average that a run starts from; until another is nearer, it is the best.

        Args:
            nets: before the first step.
            note: writes a line of statistics.
        """
        if self.first and self._judged(nets, note) and self.save is not None:
            self.save(nets, self.out / "snapshots" / BEST)
        self.procs.wait()

    def _judged(self, nets: Networks, note: Callable[..., Mapping[str, Any] | None]) -> bool:
        """Whether the average is the nearest to the data so far; False where nobody judges."""
        if self.judge is None:
            return False
        value = self.judge(nets.ema, self.latents)
        better = nets.best is None or value < nets.best
        nets.best = value if better else nets.best
        floor = {} if self.judge.floor is None else {"fd_floor": self.judge.floor}
        note(nets.images, fd_lite0=value, fd_images=self.judge.count, **floor)
        return better

    def checkpoint(self, nets: Networks) -> None:
        """Save all that the run's next step depends on."""
        self.saved_at = time.monotonic()
        if self.first:
            folder = self.out / "checkpoints"
            payload = {
                "generator": nets.generator.state_dict(),
                "discriminator": nets.discriminator.state_dict(),
                "ema": nets.ema.state_dict(),
                "opt_g": nets.opt_g.state_dict(),
                "opt_d": nets.opt_d.state_dict(),
                "scaler": nets.scaler.state_dict(),
                "images": nets.images,
                "step": nets.step,
                "best": nets.best,
                "sums": nets.sums,
                "steps": nets.steps,
                "seconds": self.seconds,
                "random": random_states(),
                "config": self.config.to_dict(),
            }
            save_checkpoint(folder / checkpoint_name(nets.images), payload)
            prune(folder, self.config.keep_last)
        self.procs.wait()

    def restore(self, nets: Networks) -> None:
        """Back to the newest checkpoint.

        Raises:
            TrainingError: there is none, or it is of other settings or networks.
        """
        found = checkpoints(self.out / "checkpoints")
        if not found:
            raise TrainingError(
                f"there is no checkpoint in {self.out / 'checkpoints'} to resume from; start the "
                "run anew."
            )
        data = newest(found)
        changed = self.config.fixed_changes(data["config"])
        if changed:
            raise TrainingError(
                "a resumed run keeps its settings; these differ: "
                + ", ".join(f"{k} was {then}, is {now}" for k, (then, now) in changed.items())
                + ". Start a new run from its snapshot instead (finetune)."
            )
        try:
            for name in ("generator", "discriminator", "ema", "opt_g", "opt_d", "scaler"):
                getattr(nets, name).load_state_dict(data[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise TrainingError(
                f"the checkpoints in {self.out} are of other networks than these: "
                f"{str(error)[:300]}."
            ) from error
        nets.images, nets.step, nets.best = data["images"], data["step"], data["best"]
        nets.sums, nets.steps = dict(data["sums"]), data["steps"]
        self.seconds_before = data["seconds"]
        restore_random_states(data["random"])
