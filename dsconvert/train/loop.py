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

from dsconvert.data.images import ImageSet
from dsconvert.data.stream import Stream
from dsconvert.errors import OutputError, TrainingError, UsageError
from dsconvert.model.inputs import sampler_of
from dsconvert.runs.checkpoint import checkpoints
from dsconvert.runs.stats import StatsWriter, peak_memory
from dsconvert.train.config import TrainConfig
from dsconvert.train.judge import Judge
from dsconvert.train.keeper import FOLDERS, Keeper, Save
from dsconvert.train.step import SUMS, Latents, Networks, Stepper, networks, parts_of
from dsconvert.util.interrupts import Interrupts
from dsconvert.util.processes import Processes, processes
from dsconvert.util.progress import reports_progress

Progress = Callable[[str, int, int, str], None]
"""``progress(stage, done, total, detail)``; of the stage "training" in images."""


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
    ema: nn.Module
    """The moving average: the generator to keep, in eval mode."""
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


@reports_progress
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

    The recipe is fixed: hinge losses, Adam, one step of each network a batch, no gradient penalty
    (Projected GAN, Sauer et al. 2021). Networks may be of any codebase.

    A run is a folder: ``stats.jsonl``, ``grids/`` and ``snapshots/`` (named by the images
    seen), ``checkpoints/``. Killed at any moment, it can be resumed and ends with the same weights.

    Args:
        generator: any module that makes images (N, C, R, R) in [-1, 1], or a list or tuple whose
            first is that; trained in place.
        discriminator: ``discriminator(images, labels)`` returns logits of any shape, for labels
            float32 (N, classes) ((N, 0) where the data has none); trained in place. Of a child
            ``feature_network`` nothing is trained.
        data: an :class:`ImageSet`; see :func:`dsconvert.data.images.open_images`.
        config: see :class:`TrainConfig`.
        out: the run's folder; made if it is missing. One that holds a run is continued
            (``resume``) or refused.
        latents: ``latents(labels, random)`` draws the generator's arguments for labels (N,
            classes) on the CPU, with the :class:`torch.Generator` it is given; its adapter's by
            default.
        ema: a moving average to go on with (where the run is judged, the start is judged too); a
            copy of ``generator`` by default.
        save: ``save(networks, path)`` writes a snapshot (``networks.ema``, ``.generator``,
            ``.discriminator``); by default none are written (checkpoints are).
        resume: go on from the newest checkpoint in ``out`` that can be read.
        procs: the processes that train together; found by themselves.
        progress: called after each step.
        report: called with each line of statistics.

    Raises:
        TrainingError: the loss is no longer finite, the device's memory is full, or there is
            nothing (sensible) to resume.
        DataError: a hundred images in a row can't be read.
        UsageError: the batch can't be cut as asked, or ``out`` holds a run already.
        AdapterError: no ``latents``, and no adapter knows the generator.
        OutputError: the disk refuses.
    """
    keeper = Keeper(
        config=config,
        data=data,
        out=Path(out),
        latents=latents or latents_of(generator),
        procs=procs or processes(),
        save=save,
    )
    parts_of(config, keeper.procs.world)
    if config.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    if keeper.procs.device.type == "cuda":  # as official
        torch.backends.cudnn.benchmark = not config.deterministic
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    run = _Run(keeper=keeper, progress=progress, report=report)
    return run.go(generator, discriminator, ema, resume=resume)


@dataclass(kw_only=True)
class _Run:
    keeper: Keeper
    progress: Progress | None
    report: Callable[[Mapping[str, Any]], None] | None
    stats: StatsWriter | None = None
    tick_began: float = 0.0
    tick_images: int = 0
    losses: str = ""
    """The means since the last line of statistics, for the progress bar."""

    def go(
        self, generator: nn.Module, discriminator: nn.Module, ema: nn.Module | None, *, resume: bool
    ) -> TrainResult:
        keeper = self.keeper
        config, data, procs = keeper.config, keeper.data, keeper.procs
        if not resume and checkpoints(keeper.out / "checkpoints"):
            raise UsageError(
                f"{keeper.out} holds a run already: continue it (resume), or name another folder."
            )
        procs.wait()  # all have looked before the first one writes
        try:
            for name in FOLDERS:
                (keeper.out / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the run's folder {keeper.out} can't be made: {error}.") from error
        nets = networks(generator, discriminator, config, procs.device, ema=ema)
        if resume:
            keeper.restore(nets)
        procs.wait()
        stepper = Stepper(config=config, data=data, latents=keeper.latents, procs=procs)
        stream = Stream(
            data,
            batch=config.batch,
            mirror=config.mirror,
            seed=config.seed,
            start=nets.images,
            rank=procs.rank,
            world=procs.world,
            workers=config.workers,
        )
        if keeper.first:
            self.stats = StatsWriter(keeper.out, resume_images=nets.images if resume else None)
            if config.evaluate:
                keeper.judge = Judge(data, count=config.evaluate, device=procs.device)
        if not resume or not nets.images:
            keeper.show_reals()
            keeper.show(nets)
            if ema is not None and not resume:  # a trained one, which the run may make worse
                keeper.judge_start(nets, self._note)
            keeper.checkpoint(nets)  # so that there is something to resume from at any moment
        try:
            with Interrupts() as interrupts:
                stopped = self._loop(nets, stepper, stream, interrupts)
        except torch.cuda.OutOfMemoryError as error:
            raise TrainingError(
                f"the device's memory is full ({str(error).splitlines()[0][:200]}). Resume with "
                "recompute ('lean' or 'blocks'), or begin with a smaller micro_batch, or bf16."
            ) from error
        finally:
            if self.stats is not None:
                self.stats.close()
        return TrainResult(
            images=nets.images,
            seconds=time.monotonic() - keeper.began,
            interrupted=stopped,
            stats=keeper.out / "stats.jsonl",
            snapshot=keeper.snapshot,
            best=nets.best,
            ema=nets.ema,
            unreadable=(*data.skipped, *sorted(stream.unreadable)),
        )

    def _loop(
        self,
        nets: Networks,
        stepper: Stepper,
        stream: Stream,
        interrupts: Interrupts,
    ) -> bool:
        keeper = self.keeper
        config, procs = keeper.config, keeper.procs
        pending: Tensor | None = None
        self.tick_began, self.tick_images = time.monotonic(), nets.images  # set-up is not training
        while nets.images < config.images:
            try:
                batch = next(stream)
            except Exception:
                # A scheduler's SIGTERM ends the processes that read as well; which error that is
                # here (EOFError, OSError, RuntimeError) depends on how far the batch had come.
                if not interrupts.caught:
                    raise
                self._count(nets, pending)
                keeper.checkpoint(nets)
                return True
            sums = stepper.run(nets, *batch)
            # One step late, so that a GPU is never waited for in the middle of its work.
            self._count(nets, pending)
            pending = sums
            tick = round(config.tick_kimg * 1000)

            def crossed(every: int) -> bool:
                return nets.images // every > (nets.images - config.batch) // every

            ticked = crossed(tick)
            done = nets.images >= config.images
            stop = procs.any(interrupts.caught)
            due = crossed(tick * config.snapshot_ticks)
            late = procs.any(time.monotonic() - keeper.saved_at > 60 * config.checkpoint_minutes)
            if ticked or done or stop or late:
                self._count(nets, pending)
                pending = None
            if (ticked or done) and nets.steps:
                self._tick(nets)
            paused = time.monotonic()
            if due or done:
                keeper.show(nets)
                keeper.take_snapshot(nets, self._note)
            if due or done or stop or late:
                keeper.checkpoint(nets)
            self.tick_began += time.monotonic() - paused  # nor is saving and judging
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
            found = checkpoints(self.keeper.out / "checkpoints")
            last = f"the newest good checkpoint is {found[-1]}" if found else "none was saved yet"
            raise TrainingError(
                f"the training broke down at {nets.images / 1000:.2f} kimg: "
                + ", ".join(f"{k} is {v}" for k, v in values.items() if not math.isfinite(v))
                + f". Nothing of it was saved; {last}. Resume from there, or begin a new run "
                "from a snapshot (finetune) with a smaller learning rate, or without fp16."
            )
        for name, value in values.items():
            nets.sums[name] += value
        nets.steps += 1

    def _note(self, images: int, **values: Any) -> None:
        """A line of statistics; the first process writes it."""
        if self.stats is not None:
            row = self.stats.write(images, **values)
            if self.report is not None:
                self.report(row)

    def _tick(self, nets: Networks) -> None:
        now = time.monotonic()
        seconds, shown = now - self.tick_began, nets.images - self.tick_images
        row: dict[str, Any] = {name: total / nets.steps for name, total in nets.sums.items()}
        row |= {
            "step": nets.step,
            "seconds": self.keeper.seconds,
            "sec_per_kimg": seconds / shown * 1000 if shown else None,
            "peak_memory_bytes": peak_memory(self.keeper.procs.device),
            "processes": self.keeper.procs.world,
        }
        nets.sums, nets.steps = dict.fromkeys(SUMS, 0.0), 0
        self.tick_began, self.tick_images = now, nets.images
        self._note(nets.images, **row)

    def _detail(self, nets: Networks) -> str:
        shown = nets.images - self.tick_images
        spent = time.monotonic() - self.tick_began
        pace = f"{spent / shown * 1000:.1f} s/kimg, " if shown else ""
        memory = peak_memory(self.keeper.procs.device) / 2**30
        if nets.steps:  # between two lines of statistics; before the next one the last are shown
            self.losses = (
                f"G {nets.sums['loss_g'] / nets.steps:+.3f}, "
                f"D {nets.sums['loss_d'] / nets.steps:.3f}, "
            )
        return f"{self.losses}{pace}{memory:.1f} GiB, {nets.images / 1000:.2f} kimg"
