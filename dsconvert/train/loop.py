"""The training loop: any generator, any discriminator, and what must not be lost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.errors import OutputError, TrainingError
from dsconvert.inputs import sampler_of
from dsconvert.train.checkpoint import (
    checkpoint_name,
    checkpoints,
    newest,
    prune,
    random_states,
    restore_random_states,
    save_checkpoint,
)
from dsconvert.train.config import SAFE_TO_CHANGE, TrainConfig
from dsconvert.train.data import ImageSet
from dsconvert.train.grids import sample_grid, save_grid
from dsconvert.train.interrupts import Interrupts
from dsconvert.train.judge import Judge
from dsconvert.train.processes import Processes, processes
from dsconvert.train.stats import StatsWriter, peak_memory
from dsconvert.train.step import SUMS, Latents, Networks, Stepper, networks, parts_of
from dsconvert.train.stream import Stream, to_range

Progress = Callable[[str, int, int, str], None]
"""``progress(stage, done, total, detail)``; of the stage "training" in images."""
Save = Callable[[Networks, Path], None]
"""Writes a snapshot of the networks to a path (which it may replace)."""
FOLDERS = ("checkpoints", "snapshots", "grids")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended."""

    images: int
    seconds: float
    """Of this call, set-up included."""
    interrupted: bool
    stats: Path
    snapshot: Path | None
    best: float | None
    """The lowest FD-lite0 to the data, where the run was judged."""
    unreadable: tuple[str, ...] = field(default=())


def latents_of(generator: nn.Module) -> Latents:
    """The latents that the generator's adapter draws, with the data's classes in place of its own.

    Raises:
        AdapterError: no installed adapter knows the generator.
    """
    sampler = sampler_of(generator)

    def draw(labels: Tensor, random: torch.Generator) -> tuple[Any, ...]:
        args = sampler(len(labels), random)
        if len(args) == 2 and isinstance(args[1], Tensor) and args[1].dim() == 2:
            return args[0], labels if args[1].shape[1] else args[1]
        return args

    return draw


def train(
    generator: nn.Module,
    discriminator: nn.Module,
    data: ImageSet,
    config: TrainConfig,
    *,
    out: str | Path,
    latents: Latents | None = None,
    ema: nn.Module | None = None,
    save: Save | None = None,
    resume: bool = False,
    procs: Processes | None = None,
    progress: Progress | None = None,
    report: Callable[[Mapping[str, Any]], None] | None = None,
) -> TrainResult:
    """Train ``generator`` against ``discriminator`` on ``data``, by the official recipe.

    A run is a folder: ``stats.jsonl``, ``grids/`` and ``snapshots/`` (named by the images
    seen), ``checkpoints/``. Killed at any moment, it can be resumed and ends with the same weights.

    Args:
        generator: any module that makes images (N, C, R, R) in [-1, 1]; trained in place.
        discriminator: ``discriminator(images, labels)`` returns logits; trained in place. Of a
            child ``feature_network`` nothing is trained.
        data: see :func:`dsconvert.train.data.open_images`.
        config: see :class:`TrainConfig`.
        out: the run's folder; made if it is missing.
        latents: the generator's arguments for given labels; its adapter's by default.
        ema: a moving average to go on with; a copy of ``generator`` by default.
        save: writes snapshots; by default none are written (checkpoints are).
        resume: go on from the newest checkpoint in ``out`` that can be read.
        procs: the processes that train together; found by themselves.
        progress: called after each step.
        report: called with each line of statistics.

    Raises:
        TrainingError: the loss is no longer finite, or there is nothing (sensible) to resume.
        UsageError: the batch can't be cut as asked.
        AdapterError: no ``latents``, and no adapter knows the generator.
        OutputError: the disk refuses.
    """
    run = _Run(
        config=config,
        data=data,
        out=Path(out),
        latents=latents or latents_of(generator),
        procs=procs or processes(),
        save=save,
        progress=progress,
        report=report,
    )
    parts_of(config, run.procs.world)
    if config.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    return run.go(generator, discriminator, ema, resume=resume)


@dataclass(kw_only=True)
class _Run:
    config: TrainConfig
    data: ImageSet
    out: Path
    latents: Latents
    procs: Processes
    save: Save | None
    progress: Progress | None
    report: Callable[[Mapping[str, Any]], None] | None
    snapshot: Path | None = None
    judge: Judge | None = None
    saved_at: float = 0.0
    tick_began: float = 0.0
    tick_images: int = 0
    seconds_before: float = 0.0
    began: float = 0.0

    @property
    def first(self) -> bool:
        return self.procs.rank == 0

    def go(
        self, generator: nn.Module, discriminator: nn.Module, ema: nn.Module | None, *, resume: bool
    ) -> TrainResult:
        self.began = self.saved_at = self.tick_began = time.monotonic()
        config = self.config
        try:
            for name in FOLDERS:
                (self.out / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the run's folder {self.out} can't be made: {error}.") from error
        nets = networks(generator, discriminator, config, self.procs.device, ema=ema)
        if resume:
            self._restore(nets)
        self.procs.wait()
        self.tick_images = nets.images
        stepper = Stepper(config=config, data=self.data, latents=self.latents, procs=self.procs)
        stream = Stream(
            self.data,
            batch=config.batch,
            mirror=config.mirror,
            seed=config.seed,
            start=nets.images,
            rank=self.procs.rank,
            world=self.procs.world,
            workers=config.workers,
        )
        stats = StatsWriter(self.out, resume_images=nets.images if resume else None) \
            if self.first else None  # fmt: skip
        if self.first and config.evaluate:
            self.judge = Judge(self.data, count=config.evaluate, device=self.procs.device)
        if not resume or not nets.images:
            self._show_reals()
            self._show(nets)
            self._checkpoint(nets)  # so that there is something to resume from at any moment
        stopped = False
        try:
            with Interrupts() as interrupts:
                stopped = self._loop(nets, stepper, stream, stats, interrupts)
        finally:
            if stats is not None:
                stats.close()
        return TrainResult(
            images=nets.images,
            seconds=time.monotonic() - self.began,
            interrupted=stopped,
            stats=self.out / "stats.jsonl",
            snapshot=self.snapshot,
            best=nets.best,
            unreadable=(*self.data.skipped, *sorted(stream.unreadable)),
        )

    def _loop(
        self,
        nets: Networks,
        stepper: Stepper,
        stream: Stream,
        stats: StatsWriter | None,
        interrupts: Interrupts,
    ) -> bool:
        config = self.config
        pending: Tensor | None = None
        while nets.images < config.images:
            sums = stepper.run(nets, *next(stream))
            # One step late, so that a GPU is never waited for in the middle of its work.
            self._count(nets, pending)
            pending = sums
            tick = round(config.tick_kimg * 1000)
            ticked = nets.images // tick > (nets.images - config.batch) // tick
            done = nets.images >= config.images
            stop = self.procs.any(interrupts.caught)
            due = ticked and (nets.images // tick) % config.snapshot_ticks == 0
            late = self.procs.any(time.monotonic() - self.saved_at > 60 * config.checkpoint_minutes)
            if ticked or done or stop or late:
                self._count(nets, pending)
                pending = None
            if (ticked or done) and nets.steps:
                self._tick(nets, stats)
            if due or done:
                self._show(nets)
                self._snapshot(nets, stats)
            if due or done or stop or late:
                self._checkpoint(nets)
            if self.progress is not None:
                self.progress("training", nets.images, config.images, self._detail(nets))
            if stop and not done:
                return True
        return False

    def _count(self, nets: Networks, sums: Tensor | None) -> None:
        """Add a step's means to the line in the making; stop where they are not finite."""
        if sums is None:
            return
        values = dict(zip(SUMS, sums.tolist(), strict=True))
        if not all(math.isfinite(v) for v in values.values()):
            found = checkpoints(self.out / "checkpoints")
            last = f"the newest good checkpoint is {found[-1]}" if found else "none was saved yet"
            raise TrainingError(
                f"the training broke down at {nets.images / 1000:.2f} kimg: "
                + ", ".join(f"{k} is {v}" for k, v in values.items() if not math.isfinite(v))
                + f". Nothing of it was saved; {last}. Resume from there with a smaller learning "
                "rate, or without fp16."
            )
        for name, value in values.items():
            nets.sums[name] += value
        nets.steps += 1

    def _tick(self, nets: Networks, stats: StatsWriter | None) -> None:
        now = time.monotonic()
        seconds, shown = now - self.tick_began, nets.images - self.tick_images
        row: dict[str, Any] = {name: total / nets.steps for name, total in nets.sums.items()}
        row |= {
            "step": nets.step,
            "seconds": self.seconds_before + now - self.began,
            "sec_per_kimg": seconds / shown * 1000 if shown else None,
            "peak_memory_bytes": peak_memory(self.procs.device),
            "processes": self.procs.world,
        }
        nets.sums, nets.steps = dict.fromkeys(SUMS, 0.0), 0
        self.tick_began, self.tick_images = now, nets.images
        if stats is not None:
            line = stats.write(nets.images, **row)
            if self.report is not None:
                self.report(line)

    def _detail(self, nets: Networks) -> str:
        shown = nets.images - self.tick_images
        spent = time.monotonic() - self.tick_began
        pace = f"{spent / shown * 1000:.1f} s/kimg, " if shown else ""
        memory = peak_memory(self.procs.device) / 2**30
        return f"{nets.images / 1000:.2f} kimg, {pace}{memory:.1f} GiB"

    # What is written --------------------------------------------------------------------------

    def _show_reals(self) -> None:
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

    def _show(self, nets: Networks) -> None:
        if self.first:
            path = self.out / "grids" / f"{nets.images:09d}.png"
            save_grid(sample_grid(nets.ema, self.grid_inputs()), path)

    def _snapshot(self, nets: Networks, stats: StatsWriter | None) -> None:
        if self.first:
            better = False
            if self.judge is not None:
                value = self.judge(nets.ema, self.latents)
                better = nets.best is None or value < nets.best
                nets.best = value if better else nets.best
                if stats is not None:
                    line = stats.write(nets.images, fd_lite0=value, fd_images=self.judge.count)
                    if self.report is not None:
                        self.report(line)
            if self.save is not None:
                folder = self.out / "snapshots"
                self.snapshot = folder / f"network-{nets.images:09d}.pkl"
                self.save(nets, self.snapshot)
                if better:
                    self.save(nets, folder / "best.pkl")
                if self.config.keep_last:
                    for old in sorted(folder.glob("network-*.pkl"))[: -self.config.keep_last]:
                        old.unlink(missing_ok=True)
        self.procs.wait()

    def _checkpoint(self, nets: Networks) -> None:
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
                "seconds": self.seconds_before + time.monotonic() - self.began,
                "random": random_states(),
                "config": self.config.to_dict(),
            }
            save_checkpoint(folder / checkpoint_name(nets.images), payload)
            prune(folder, self.config.keep_last)
        self.procs.wait()

    def _restore(self, nets: Networks) -> None:
        found = checkpoints(self.out / "checkpoints")
        if not found:
            raise TrainingError(
                f"there is no checkpoint in {self.out / 'checkpoints'} to resume from; start the "
                "run anew."
            )
        data = newest(found)
        mine, theirs = self.config.to_dict(), dict(data["config"])
        theirs["betas"] = tuple(theirs["betas"])
        changed = [k for k, v in mine.items() if k not in SAFE_TO_CHANGE and theirs.get(k) != v]
        if changed:
            raise TrainingError(
                "a resumed run keeps its settings; these differ: "
                + ", ".join(f"{k} was {theirs.get(k)}, is {mine[k]}" for k in changed)
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
