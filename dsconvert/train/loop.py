"""The training loop: any generator, any discriminator, resumable at any moment."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from dsconvert.adapter import adapter_for
from dsconvert.config.train import TrainConfig
from dsconvert.data.images import ImageSet
from dsconvert.data.stream import ImageStream
from dsconvert.errors import TrainingError, UsageError
from dsconvert.runs.folder import RunFolder
from dsconvert.runs.stats import StatsWriter
from dsconvert.train.alone import alone_in
from dsconvert.train.checkpointing import restore_state, save_state
from dsconvert.train.evaluator import FDLite0Evaluator, check_evaluation
from dsconvert.train.low_memory import needs_less
from dsconvert.train.outputs import RunOutputs
from dsconvert.train.schedule import with_rates
from dsconvert.train.state import Latents, Save, TrainState, latents_of, new_state
from dsconvert.train.statistics import Report, TrainStatistics
from dsconvert.train.step import Stepper, parts_of
from dsconvert.train.step_graph import why_no_graph
from dsconvert.util.first_line import first_line
from dsconvert.util.interrupts import Interrupts
from dsconvert.util.processes import Processes, processes
from dsconvert.util.progress import Progress, reports_progress


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The end of a call of :func:`train`."""

    images: int
    seconds: float
    """Of this call, set-up included."""
    interrupted: bool
    stats: Path
    snapshot: Path | None
    best: float | None
    """The lowest FD-lite0 to the data; None: it was not measured."""
    ema: nn.Module
    """The moving average, in eval mode: the generator to keep."""
    unreadable: tuple[str, ...] = field(default=())
    """The images that could not be read, each with the reason."""


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
    lock: bool = True,
    procs: Processes | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> TrainResult:
    """Train ``generator`` against ``discriminator`` on ``data``, by the official recipe.

    The recipe is fixed: hinge losses, Adam, one step of each network for each batch, no gradient
    penalty (Projected GAN, Sauer et al. 2021). Networks may be of any codebase.

    A run is a folder: ``stats.jsonl``, ``grids/`` and ``snapshots/`` (named by the images seen),
    ``checkpoints/``. A run that is killed at any moment can be resumed and ends with the same
    weights.

    Args:
        generator: any module that makes images (N, C, R, R) in [-1, 1], or a list or tuple whose
            first item is such images; trained in place.
        discriminator: ``discriminator(images, labels)`` returns logits of any shape, for labels
            float32 (N, classes) ((N, 0) if the data have none); trained in place. Of a child
            ``feature_network`` nothing is trained.
        data: an :class:`ImageSet`; see :func:`dsconvert.data.images.open_images`.
        config: see :class:`TrainConfig`.
        out: the run's folder; made if it is missing. A folder that holds a run is continued
            (``resume``) or refused.
        latents: ``latents(labels, random)`` draws the generator's arguments for labels (N,
            classes) on the CPU, with the given :class:`torch.Generator`; None: the generator's
            adapter draws them.
        ema: a moving average to start from, which is evaluated before the first step if the
            snapshots are; None: a copy of ``generator``.
        save: ``save(state, path)`` writes a snapshot of ``state.ema``, ``.generator`` and
            ``.discriminator``; None: the run writes checkpoints but no snapshots.
        resume: continue from the newest checkpoint in ``out`` that can be read.
        lock: hold the lock of ``out``, so that no other process trains there; False: it is held.
        procs: the processes that train together; None: those of the launcher.
        progress: called after each step; the unit of the stage "training" is images.
        report: called with each line of statistics.

    Raises:
        TrainingError: the loss is no longer finite, the device's memory is full, another process
            trains in ``out``, or no checkpoint there can be resumed with these settings.
        DataError: a hundred images in a row can't be read.
        UsageError: the batch is not a multiple of its parts, CUDA graphs are asked for where they
            can't be, or ``out`` holds a run already.
        AdapterError: no ``latents``, and no adapter knows the generator.
        OutputError: the disk can't take the run's files.
    """
    procs = procs or processes()
    config = with_rates(config, generator)
    outputs = RunOutputs(
        config=config,
        data=data,
        folder=RunFolder(Path(out)),
        latents=latents or latents_of(generator),
        procs=procs,
        save=save,
    )
    parts_of(config, procs.world)
    if config.cuda_graph == "on" and (reason := why_no_graph(config, procs)) is not None:
        raise UsageError(
            f"the steps can't be CUDA graphs: {reason}. Leave cuda_graph at auto, or change that."
        )
    if config.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    if procs.device.type == "cuda":  # as official, but for the precision tf32
        torch.backends.cudnn.benchmark = not config.deterministic
        rounded = config.precision == "tf32"
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = rounded
    folder = outputs.folder
    distilled = RunFolder.of_distillation(folder.path)
    if not resume and (folder.checkpoints() or distilled.checkpoints()):
        raise UsageError(
            f"{folder.path} holds a run already: continue it (resume), or name another folder."
        )
    check_evaluation(config, data)
    loop = _Loop(outputs=outputs, progress=progress)
    with alone_in(folder, procs) if lock else nullcontext():
        return loop.run(generator, discriminator, ema, resume=resume, report=report)


@dataclass(kw_only=True)
class _Loop:
    """One call of :func:`train`: set-up, steps, and the files written between them."""

    outputs: RunOutputs
    progress: Progress | None
    began: float = field(default_factory=time.monotonic)
    saved_at: float = field(default_factory=time.monotonic)
    seconds_before: float = 0.0
    """Of the run's earlier calls."""

    @property
    def seconds(self) -> float:
        """Of the whole run so far."""
        return self.seconds_before + time.monotonic() - self.began

    def run(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        ema: nn.Module | None,
        *,
        resume: bool,
        report: Report | None,
    ) -> TrainResult:
        out = self.outputs
        config, data, procs, folder = out.config, out.data, out.procs, out.folder
        procs.wait()  # no process may write before all have looked
        folder.make()
        state = new_state(generator, discriminator, config, procs.device, ema=ema)
        if resume:
            self.seconds_before = restore_state(state, folder=folder, config=config)
        procs.wait()
        adapter = adapter_for(generator)
        stream = ImageStream(
            data,
            batch=config.batch,
            mirror=config.mirror,
            seed=config.seed,
            start=state.images,
            rank=procs.rank,
            world=procs.world,
            workers=config.workers,
            device=procs.device,
        )
        stepper = Stepper(
            config=config,
            data=data,
            latents=out.latents,
            procs=procs,
            move_means=None if adapter is None else adapter.recipe.move_means,
            release=stream.release,
        )
        writer = None
        if out.first:
            writer = StatsWriter(folder.path, resume_images=state.images if resume else None)
            if config.evaluate:
                out.evaluator = FDLite0Evaluator(data, count=config.evaluate, device=procs.device)
        statistics = TrainStatistics(
            folder=folder,
            device=procs.device,
            processes=procs.world,
            writer=writer,
            report=report,
            tick_images=state.images,
            tick_began=time.monotonic(),
        )
        try:
            if not resume or not state.images:
                out.write_reals()
                out.write_grid(state)
                if ema is not None and not resume:  # a trained one, which the run may make worse
                    out.evaluate_start(state, statistics.note)
                self._checkpoint(state)  # from now on there is one at any moment
            with Interrupts() as interrupts:
                statistics.tick_began = time.monotonic()  # set-up is not training
                stopped = self._steps(state, stepper, stream, statistics, interrupts)
        except torch.cuda.OutOfMemoryError as error:
            raise TrainingError(
                f"the device's memory is full ({first_line(error)[:200].rstrip('.')}). "
                f"{needs_less(config)}"
            ) from error
        finally:
            statistics.close()
        return TrainResult(
            images=state.images,
            seconds=time.monotonic() - self.began,
            interrupted=stopped,
            stats=folder.stats,
            snapshot=out.snapshot,
            best=state.best,
            ema=state.ema,
            unreadable=(*data.skipped, *sorted(stream.unreadable)),
        )

    def _steps(
        self,
        state: TrainState,
        stepper: Stepper,
        stream: ImageStream,
        statistics: TrainStatistics,
        interrupts: Interrupts,
    ) -> bool:
        """Train until the end of the run; return whether it was interrupted before."""
        config, procs = self.outputs.config, self.outputs.procs
        tick = round(config.tick_kimg * 1000)
        pending: Tensor | None = None

        def crossed(every: int) -> bool:
            return state.images // every > (state.images - config.batch) // every

        while state.images < config.images:
            try:
                batch = next(stream)
            except Exception:
                # A scheduler's SIGTERM also ends the workers that read. The type of the error here
                # (EOFError, OSError, RuntimeError) depends on the progress of the batch.
                if not interrupts.caught:
                    raise
                statistics.count(state, pending)
                self._checkpoint(state)
                return True
            means = stepper.run(state, *batch)
            # Counted one step late, so that the loop never waits for a GPU in the middle of a step.
            statistics.count(state, pending)
            pending = means
            ticked = crossed(tick)
            done = state.images >= config.images
            stop = procs.any(interrupts.caught)
            due = crossed(tick * config.snapshot_ticks)
            late = procs.any(time.monotonic() - self.saved_at > 60 * config.checkpoint_minutes)
            if ticked or done or stop or late:
                statistics.count(state, pending)
                pending = None
            if (ticked or done) and state.steps:
                statistics.tick(state, seconds=self.seconds)
            paused = time.monotonic()
            if due or done:
                self.outputs.write_grid(state)
                self.outputs.write_snapshot(state, statistics.note)
            if due or done or stop or late:
                self._checkpoint(state)
            statistics.pause(time.monotonic() - paused)
            if self.progress is not None:
                detail = statistics.detail(state)
                self.progress("training", state.images, config.images, detail)
            if stop and not done:
                return True
        return False

    def _checkpoint(self, state: TrainState) -> None:
        self.saved_at = time.monotonic()
        out = self.outputs
        if out.first:
            save_state(state, folder=out.folder, config=out.config, seconds=self.seconds)
        out.procs.wait()
