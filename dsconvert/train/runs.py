"""Start a run from settings or from a file, and resume a run by its folder alone."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from dsconvert.data.images import ImageSet, open_images
from dsconvert.errors import OutputError, UsageError
from dsconvert.formats.official import load_snapshot, new_snapshot, save_snapshot
from dsconvert.projected.discriminator import ProjectedDiscriminator
from dsconvert.projected.lite0 import Weights
from dsconvert.runs.folder import RunFolder, new_run_path
from dsconvert.train.config import TrainConfig
from dsconvert.train.data_record import data_record, reopen
from dsconvert.train.ema import same_structure
from dsconvert.train.loop import TrainResult, train
from dsconvert.train.run_report import write_layer_costs, write_run_report
from dsconvert.train.schedule import fit_to_run
from dsconvert.train.setup import (
    DiscriminatorFacts,
    NewGenerator,
    discriminator_of,
    facts_of,
    new_discriminator,
    new_generator,
    official_saver,
)
from dsconvert.train.statistics import Report
from dsconvert.train.step import parts_of
from dsconvert.util.processes import Processes, environment, processes
from dsconvert.util.progress import Progress, reports_progress


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


@reports_progress
def train_new(
    wanted: NewGenerator,
    config: TrainConfig,
    *,
    data: str | Path,
    out: str | Path = "runs",
    name: str | None = None,
    conditional: bool = False,
    backbone: Weights = "auto",
    discriminator: DiscriminatorFacts | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> RunResult:
    """Train a new generator from scratch.

    If ``conditional``, the data decide ``wanted.classes``. See :func:`dsconvert.train.train` for
    the files of a run and the errors.
    """
    procs = processes(device)
    parts_of(config, procs.world)
    images_of = partial(
        open_images,
        data,
        resolution=wanted.resolution,
        channels=wanted.img_channels,
        conditional=conditional,
    )
    # Reads names and labels only: networks that can't be built fail before the images are decoded.
    wanted = replace(wanted, classes=images_of(cache="never").classes)
    generator, plan = new_generator(wanted, seed=config.seed)
    facts = discriminator or DiscriminatorFacts(resolution=wanted.resolution)
    facts = replace(facts, resolution=wanted.resolution, classes=wanted.classes)
    network = new_discriminator(facts, weights=backbone, seed=config.seed)
    images = images_of(progress=progress)
    structure = wanted.cfg if wanted.preset == "none" else f"{wanted.cfg}-{wanted.preset}"
    default = f"{structure}-{Path(data).stem}-{wanted.resolution}-batch{config.batch}"
    about = {
        "command": "train",
        "generator": asdict(wanted),
        "plan": None if plan is None else json.loads(plan.to_json()),
    }
    return _begin(
        generator, None, network, images, config, procs, about, wanted=wanted,
        folder=_new_folder(out, name, default, procs), progress=progress, report=report,
    )  # fmt: skip


@reports_progress
def finetune(
    snapshot: str | Path,
    config: TrainConfig,
    *,
    data: str | Path,
    out: str | Path = "runs",
    name: str | None = None,
    new_heads: bool = False,
    backbone: Weights = "auto",
    discriminator: DiscriminatorFacts | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
) -> RunResult:
    """Continue to train a file's generator, converted or not, with its discriminator if any.

    Args:
        snapshot: an official snapshot, or one that dsconvert wrote. Training continues with its
            ``G``, or with a copy of ``G_ema`` if ``G`` is built differently or missing.
        config: the recipe; ``ema_rampup`` should be None, as when official training resumes.
        data: a folder or zip; its images are resized to the generator's resolution.
        out: the folder of all runs.
        name: of this run's folder.
        new_heads: start with a new discriminator even if the file has one.
        backbone: weights of a new discriminator's backbone.
        discriminator: structure of a new one; for the file's own, only ``augment`` counts.
        device: for example ``cuda:0``; None: a GPU if there is one.
        progress: see :func:`dsconvert.train.train`.
        report: see :func:`dsconvert.train.train`.

    Raises:
        UsageError: the data have more classes than the generator, or the batch is not a multiple
            of its parts.
        DsconvertError: see :func:`dsconvert.train.train`.
    """
    procs = processes(device)
    parts_of(config, procs.world)
    snap = load_snapshot(snapshot)
    facts = snap.config
    classes, resolution = int(facts["classes"]), int(facts["resolution"])
    images_of = partial(
        open_images,
        data,
        resolution=resolution,
        channels=int(facts["img_channels"]),
        conditional=classes > 0,
    )
    found = images_of(cache="never").classes
    if found > classes:
        raise UsageError(f"{data} has {found} classes, and the generator of {snapshot} {classes}.")
    ema = snap.generator
    generator = snap.module("G") if snap.has_module("G") else None
    own_generator = generator is not None and same_structure(generator, ema)
    if generator is None or not own_generator:  # G_ema alone was converted, or G is an empty module
        generator = copy.deepcopy(ema)
    wanted = discriminator or DiscriminatorFacts(resolution=resolution)
    network = None if new_heads else discriminator_of(snap, augment=wanted.augment)
    own = network is not None
    if network is None:
        wanted = replace(wanted, resolution=resolution, classes=classes)
        network = new_discriminator(wanted, weights=backbone, seed=config.seed)
    images = replace(images_of(progress=progress), classes=classes)
    about = {
        "command": "finetune",
        "snapshot": str(snapshot),
        "generator": {k: v for k, v in facts.items() if isinstance(v, str | int | float | bool)},
        "starts_from": "G" if own_generator else "G_ema",
        "discriminator_from_file": own,
    }
    default = f"finetune-{Path(snapshot).stem}-{Path(data).stem}-{resolution}"
    return _begin(
        generator, ema, network, images, config, procs, about, wanted=None,
        folder=_new_folder(out, name, default, procs), progress=progress, report=report,
    )  # fmt: skip


def _new_folder(out: str | Path, name: str | None, default: str, procs: Processes) -> RunFolder:
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


def _begin(
    generator: nn.Module,
    ema: nn.Module | None,
    discriminator: ProjectedDiscriminator,
    images: ImageSet,
    config: TrainConfig,
    procs: Processes,
    about: Mapping[str, Any],
    *,
    wanted: NewGenerator | None,
    folder: RunFolder,
    progress: Progress | None,
    report: Report | None,
) -> RunResult:
    """Write the description of a new run, then train."""
    config, notes = fit_to_run(config)
    if procs.rank == 0:
        spent = write_layer_costs(folder, generator, wanted=wanted)
        folder.write_settings(
            {
                "dsconvert_run": 1,
                **about,
                "data": data_record(images),
                "discriminator": asdict(facts_of(discriminator)),
                "config": config.to_dict(),
                "cost": {"parameters": spent.params, "macs": spent.macs},
                "environment": environment(procs),
            },
        )
        # The structure that checkpoints are loaded into, whatever its origin.
        save_snapshot(new_snapshot(generator), generator, folder.start, overwrite=True)
    return _train(
        generator, discriminator, images, config, procs,
        folder=folder, ema=ema, resume=False, notes=notes, progress=progress, report=report,
    )  # fmt: skip


def _train(
    generator: nn.Module,
    discriminator: nn.Module,
    images: ImageSet,
    config: TrainConfig,
    procs: Processes,
    *,
    folder: RunFolder,
    ema: nn.Module | None,
    resume: bool,
    notes: tuple[str, ...] = (),
    progress: Progress | None,
    report: Report | None,
) -> RunResult:
    """Train, then write the report."""
    result = train(
        generator,
        discriminator,
        images,
        config,
        out=folder.path,
        ema=ema,
        save=official_saver(images, mirror=config.mirror),
        resume=resume,
        procs=procs,
        progress=progress,
        report=report,
    )
    return RunResult(
        folder=folder.path,
        result=result,
        processes=procs.world,
        rank=procs.rank,
        report=write_run_report(folder, result, images, config, procs),
        notes=notes,
    )


@reports_progress
def resume(
    folder: str | Path,
    *,
    device: str | None = None,
    progress: Progress | None = None,
    report: Report | None = None,
    **changes: Any,
) -> RunResult:
    """Continue a run.

    Args:
        folder: of the run.
        device: for example ``cuda:0``; None: a GPU if there is one.
        progress: see :func:`dsconvert.train.train`.
        report: see :func:`dsconvert.train.train`.
        changes: new values of settings that no weight depends on (``kimg=200``).

    Raises:
        TrainingError: there is no such run, no checkpoint, or its data have changed.
    """
    procs = processes(device)
    files = RunFolder(Path(folder))
    settings = files.read_settings()
    images = reopen(settings["data"], progress=progress)
    config = TrainConfig.from_dict({**settings["config"], **changes})
    facts = settings["discriminator"]
    kept: dict[str, Any] = {**facts, "augment": tuple(facts["augment"])}
    snap = load_snapshot(files.start)
    generator = snap.module("G")
    ema = snap.generator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checkpoint holds the weights of the backbone too
        discriminator = new_discriminator(DiscriminatorFacts(**kept), weights="random")
    if procs.rank == 0:
        files.write_settings({**settings, "config": config.to_dict()})
    return _train(
        generator, discriminator, images, config, procs,
        folder=files, ema=ema, resume=True, progress=progress, report=report,
    )  # fmt: skip
