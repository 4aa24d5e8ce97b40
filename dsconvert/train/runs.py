"""Start a run from settings or from a file, and resume a run by its folder alone."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from dsconvert.config.train import TrainConfig
from dsconvert.data.images import open_images
from dsconvert.errors import UsageError
from dsconvert.formats.official import load_snapshot
from dsconvert.projected.discriminator import ProjectedDiscriminator
from dsconvert.projected.lite0 import Weights
from dsconvert.runs.folder import RunFolder
from dsconvert.train.alone import alone_in
from dsconvert.train.checkpointing import check_settings
from dsconvert.train.data_record import reopen
from dsconvert.train.ema import same_structure
from dsconvert.train.evaluator import check_evaluation
from dsconvert.train.launch import (
    RunResult,
    TrainingJob,
    begin_run,
    new_folder,
    run_job,
)
from dsconvert.train.setup import (
    DiscriminatorFacts,
    NewGenerator,
    discriminator_of,
    facing,
    facts_of,
    new_discriminator,
    new_generator,
)
from dsconvert.train.statistics import Report
from dsconvert.train.step import parts_of
from dsconvert.util.numbers import counted
from dsconvert.util.processes import Processes, processes
from dsconvert.util.progress import Progress, reports_progress


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
    facts = facing(discriminator, generator, resolution=wanted.resolution, classes=wanted.classes)
    network = new_discriminator(facts, weights=backbone, seed=config.seed)
    images = images_of(progress=progress)
    check_evaluation(config, images)
    structure = wanted.cfg if wanted.preset == "none" else f"{wanted.cfg}-{wanted.preset}"
    default = f"{structure}-{Path(data).stem}-{wanted.resolution}-batch{config.batch}"
    about = {
        "command": "train",
        "generator": asdict(wanted),
        "plan": None if plan is None else json.loads(plan.to_json()),
    }
    job = TrainingJob(
        folder=new_folder(out, name, default, procs),
        generator=generator,
        discriminator=network,
        ema=None,
        images=images,
        config=config,
        procs=procs,
    )
    return begin_run(job, about=about, wanted=wanted, progress=progress, report=report)


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
        UsageError: the data have more classes than the generator, ``backbone`` or the number of
            heads is given though the file's own discriminator is used, or the batch is not a
            multiple of its parts.
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
    wanted = facing(discriminator, generator, resolution=resolution, classes=classes)
    network = None if new_heads else discriminator_of(snap, augment=wanted.augment)
    own = network is not None
    if network is None:
        network = new_discriminator(wanted, weights=backbone, seed=config.seed)
    else:
        _check_own(network, wanted, backbone, snapshot)
    images = replace(images_of(progress=progress), classes=classes)
    check_evaluation(config, images)
    about = {
        "command": "finetune",
        "snapshot": str(snapshot),
        "generator": {k: v for k, v in facts.items() if isinstance(v, str | int | float | bool)},
        "starts_from": "G" if own_generator else "G_ema",
        "discriminator_from_file": own,
    }
    default = f"finetune-{Path(snapshot).stem}-{Path(data).stem}-{resolution}"
    job = TrainingJob(
        folder=new_folder(out, name, default, procs),
        generator=generator,
        discriminator=network,
        ema=ema,
        images=images,
        config=config,
        procs=procs,
    )
    return begin_run(job, about=about, wanted=None, progress=progress, report=report)


def _check_own(
    network: ProjectedDiscriminator,
    wanted: DiscriminatorFacts,
    backbone: Weights,
    snapshot: str | Path,
) -> None:
    """Refuse settings of a new discriminator where the file's own one is used.

    Raises:
        UsageError: names the setting.
    """
    heads = facts_of(network).num_discs
    idle = None
    if backbone != "auto":
        idle = f"backbone {backbone} (--backbone)"
    elif wanted.num_discs not in (DiscriminatorFacts(resolution=0).num_discs, heads):
        idle = f"num_discs {wanted.num_discs} (--discs)"
    if idle is not None:
        raise UsageError(
            f"{idle} is of a new discriminator, and {snapshot} has its own, of "
            f"{counted(heads, 'head')}: leave it out, or begin a new one (new_heads, "
            "--new-discriminator)."
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
        TrainingError: there is no such run, no checkpoint, its data have changed, a setting can't
            change, or another process trains in the folder.
        UsageError: a setting is unknown or out of range.
    """
    procs = processes(device)
    files = RunFolder(Path(folder))
    settings = files.read_settings()
    config = TrainConfig.from_dict({**settings["config"], **changes})
    check_settings(config, settings["config"])
    with alone_in(files, procs):
        job = _continued(files, settings, config, procs, progress=progress)
        return run_job(job, resume=True, progress=progress, report=report)


def _continued(
    files: RunFolder,
    settings: Mapping[str, Any],
    config: TrainConfig,
    procs: Processes,
    *,
    progress: Progress | None,
) -> TrainingJob:
    """Return the job of a run that goes on, and write its settings.

    Raises:
        TrainingError: its data have changed.
        UsageError: it can't be evaluated on its data.
    """
    images = reopen(settings["data"], progress=progress)
    check_evaluation(config, images)
    facts = settings["discriminator"]
    kept: dict[str, Any] = {**facts, "augment": tuple(facts["augment"])}
    snap = load_snapshot(files.start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checkpoint holds the weights of the backbone too
        discriminator = new_discriminator(DiscriminatorFacts(**kept), weights="random")
    if procs.rank == 0:
        files.write_settings({**settings, "config": config.to_dict()})
    return TrainingJob(
        folder=files,
        generator=snap.module("G"),
        discriminator=discriminator,
        ema=snap.generator,
        images=images,
        config=config,
        procs=procs,
    )
