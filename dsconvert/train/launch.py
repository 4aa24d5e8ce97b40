"""Carry out a run: describe it on the disk, train, and write the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from dsconvert.config.train import TrainConfig
from dsconvert.data.images import ImageSet
from dsconvert.errors import OutputError
from dsconvert.formats.official import new_snapshot, save_snapshot
from dsconvert.projected.discriminator import ProjectedDiscriminator
from dsconvert.runs.folder import RunFolder, new_run_path
from dsconvert.train.alone import alone_in
from dsconvert.train.data_record import data_record
from dsconvert.train.loop import TrainResult, train
from dsconvert.train.run_report import write_layer_costs, write_run_report
from dsconvert.train.schedule import fit_to_run, with_rates
from dsconvert.train.setup import NewGenerator, facts_of, official_saver
from dsconvert.train.statistics import Report
from dsconvert.util.processes import Processes, environment
from dsconvert.util.progress import Progress


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A run's folder, and the end of the call that started or resumed it."""

    folder: Path
    result: TrainResult
    processes: int
    rank: int
    report: Path | None = None
    """The HTML report; None if it could not be written, and in every process but the first."""
    notes: tuple[str, ...] = ()
    """The changes of settings that the run's length required, for people."""

    @property
    def snapshot(self) -> Path | None:
        """The newest snapshot of the run, perhaps of an earlier call."""
        earlier = RunFolder(self.folder).snapshots()
        return self.result.snapshot or (earlier[-1] if earlier else None)


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything that a run trains with."""

    folder: RunFolder
    generator: nn.Module
    discriminator: ProjectedDiscriminator
    ema: nn.Module | None
    """The moving average to start from; None: a copy of the generator."""
    images: ImageSet
    config: TrainConfig
    procs: Processes


def new_folder(out: str | Path, name: str | None, default: str, procs: Processes) -> RunFolder:
    """Make the run's folder in the first process; return it in all of them.

    Raises:
        OutputError: the folder holds something already, or can't be made. Every process raises.
    """
    made: Path | str | None = None
    if procs.rank == 0:
        try:
            made = new_run_path(out, name, default)
        except OutputError as error:
            made = str(error)
    shared = procs.share(made)
    if isinstance(shared, str):
        raise OutputError(shared)
    return RunFolder(shared)


def begin_run(
    job: TrainingJob,
    *,
    about: Mapping[str, Any],
    wanted: NewGenerator | None,
    progress: Progress | None,
    report: Report | None,
) -> RunResult:
    """Write the description of a new run, then train.

    Args:
        job: of the run.
        about: facts for ``settings.json``; ``command`` is one of them.
        wanted: settings of a new generator; None: it came from a file.
        progress: see :func:`dsconvert.train.train`.
        report: see :func:`dsconvert.train.train`.

    Raises:
        DsconvertError: see :func:`dsconvert.train.train`.
    """
    config, notes = fit_to_run(with_rates(job.config, job.generator))
    job = replace(job, config=config)
    with alone_in(job.folder, job.procs):
        if job.procs.rank == 0:
            _describe(job, about=about, wanted=wanted)
        return run_job(job, resume=False, notes=notes, progress=progress, report=report)


def _describe(job: TrainingJob, *, about: Mapping[str, Any], wanted: NewGenerator | None) -> None:
    """Write the settings of a new run, and the structure of its generator.

    Raises:
        OutputError: another process has begun a run there, or the disk can't take the files.
    """
    if job.folder.settings.exists():
        raise OutputError(f"another process has begun a run in {job.folder.path}; name another.")
    spent = write_layer_costs(job.folder, job.generator, wanted=wanted)
    job.folder.write_settings(
        {
            "dsconvert_run": 1,
            **about,
            "data": data_record(job.images),
            "discriminator": asdict(facts_of(job.discriminator)),
            "config": job.config.to_dict(),
            "cost": {"parameters": spent.params, "macs": spent.macs},
            "environment": environment(job.procs),
        },
    )
    # The structure that checkpoints are loaded into, whatever its origin.
    save_snapshot(new_snapshot(job.generator), job.generator, job.folder.start, overwrite=True)


def run_job(
    job: TrainingJob,
    *,
    resume: bool,
    notes: tuple[str, ...] = (),
    progress: Progress | None,
    report: Report | None,
) -> RunResult:
    """Train, then write the report; the caller holds the folder's lock.

    Args:
        job: of the run.
        resume: whether to continue from the newest checkpoint.
        notes: for the result.
        progress: see :func:`dsconvert.train.train`.
        report: see :func:`dsconvert.train.train`.

    Raises:
        DsconvertError: see :func:`dsconvert.train.train`.
    """
    result = train(
        job.generator,
        job.discriminator,
        job.images,
        job.config,
        out=job.folder.path,
        ema=job.ema,
        save=official_saver(job.images, mirror=job.config.mirror),
        resume=resume,
        lock=False,
        procs=job.procs,
        progress=progress,
        report=report,
    )
    return RunResult(
        folder=job.folder.path,
        result=result,
        processes=job.procs.world,
        rank=job.procs.rank,
        report=write_run_report(job.folder, result, job.images, job.config, job.procs),
        notes=notes,
    )
