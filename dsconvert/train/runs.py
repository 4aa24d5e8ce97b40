"""Runs by their folders: started from settings, or from a file, and continued by name alone."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from dsconvert.data.images import ImageSet, open_images
from dsconvert.errors import TrainingError, UsageError
from dsconvert.formats.official import load_snapshot, new_snapshot, save_snapshot
from dsconvert.projected.lite0 import Weights
from dsconvert.runs.folder import (
    START,
    environment,
    new_folder,
    newest_snapshot,
    read_settings,
    write_settings,
)
from dsconvert.train.closing import close_run, count_layers
from dsconvert.train.config import TrainConfig
from dsconvert.train.ema import same_structure
from dsconvert.train.loop import Progress, TrainResult, train
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
from dsconvert.train.step import parts_of
from dsconvert.util.processes import Processes, processes
from dsconvert.util.progress import reports_progress

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A run's folder, and how it ended."""

    folder: Path
    result: TrainResult
    processes: int
    rank: int
    report: Path | None = None
    """The HTML report; None where it could not be written, and in all but the first process."""
    notes: tuple[str, ...] = ()
    """What was changed to suit the run's length."""

    @property
    def snapshot(self) -> Path | None:
        """The newest one of the run, perhaps of an earlier call."""
        return self.result.snapshot or newest_snapshot(self.folder)


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

    ``wanted.classes`` is taken from the data where ``conditional``. See
    :func:`dsconvert.train.train` for what a run leaves behind and for errors.
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
    # A look at names and labels: what can't be built need not wait until all is decoded.
    wanted = replace(wanted, classes=images_of(cache="never").classes)
    generator, plan = new_generator(wanted, seed=config.seed)
    facts = discriminator or DiscriminatorFacts(resolution=wanted.resolution)
    facts = replace(facts, resolution=wanted.resolution, classes=wanted.classes)
    judge = new_discriminator(facts, weights=backbone, seed=config.seed)
    images = images_of(progress=progress)
    kind = wanted.cfg if wanted.preset == "none" else f"{wanted.cfg}-{wanted.preset}"
    default = f"{kind}-{Path(data).stem}-{wanted.resolution}-batch{config.batch}"
    about = {
        "command": "train",
        "generator": asdict(wanted),
        "plan": None if plan is None else json.loads(plan.to_json()),
    }
    return _begin(
        generator, None, judge, images, config, procs, about, wanted=wanted,
        folder=new_folder(out, name, default, procs), progress=progress, report=report,
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
    """Go on training a file's generator, converted or not, with the file's discriminator if any.

    Args:
        snapshot: an official snapshot, or one that dsconvert wrote. Training goes on with its
            ``G``, or with a copy of ``G_ema`` where that is built differently or missing.
        config: the recipe; ``ema_rampup`` is best None here, as official training resumes.
        data: a folder or zip; its images are brought to the generator's resolution.
        out: where runs are kept.
        name: of this one.
        new_heads: start with a new discriminator even where the file has one.
        backbone: weights of a new discriminator's backbone.
        discriminator: structure of a new one; of the file's own only ``augment`` is taken.
        device: for example ``cuda:0``; found by itself.
        progress: see :func:`dsconvert.train.train`.
        report: likewise.

    Raises:
        UsageError: the data have more classes than the generator, or the batch can't be cut.
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
    judge = None if new_heads else discriminator_of(snap, augment=wanted.augment)
    own = judge is not None
    if judge is None:
        wanted = replace(wanted, resolution=resolution, classes=classes)
        judge = new_discriminator(wanted, weights=backbone, seed=config.seed)
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
        generator, ema, judge, images, config, procs, about, wanted=None,
        folder=new_folder(out, name, default, procs), progress=progress, report=report,
    )  # fmt: skip


def _begin(
    generator: nn.Module,
    ema: nn.Module | None,
    judge: Any,
    images: ImageSet,
    config: TrainConfig,
    procs: Processes,
    about: Mapping[str, Any],
    *,
    wanted: NewGenerator | None,
    folder: Path,
    progress: Progress | None,
    report: Report | None,
) -> RunResult:
    config, notes = fit_to_run(config)
    if procs.rank == 0:
        spent = count_layers(folder, generator, wanted=wanted)
        write_settings(
            folder,
            {
                "dsconvert_run": 1,
                **about,
                "data": {
                    "path": str(images.path.resolve()),
                    "images": len(images),
                    "fingerprint": images.fingerprint,
                    "resolution": images.resolution,
                    "channels": images.channels,
                    "conditional": images.labels is not None,
                    "classes": images.classes,
                    "skipped": list(images.skipped),
                },
                "discriminator": asdict(facts_of(judge)),
                "config": config.to_dict(),
                "cost": {"parameters": spent.params, "macs": spent.macs},
                "environment": environment(procs),
            },
        )
        # The structure that checkpoints are loaded into, whatever made it.
        save_snapshot(new_snapshot(generator), generator, folder / START, overwrite=True)
    return _train(
        generator, judge, images, config, procs,
        folder=folder, ema=ema, again=False, notes=notes, progress=progress, report=report,
    )  # fmt: skip


def _train(
    generator: nn.Module,
    judge: nn.Module,
    images: ImageSet,
    config: TrainConfig,
    procs: Processes,
    *,
    folder: Path,
    ema: nn.Module | None,
    again: bool,
    notes: tuple[str, ...] = (),
    progress: Progress | None,
    report: Report | None,
) -> RunResult:
    result = train(
        generator,
        judge,
        images,
        config,
        out=folder,
        ema=ema,
        save=official_saver(images, mirror=config.mirror),
        resume=again,
        procs=procs,
        progress=progress,
        report=report,
    )
    return RunResult(
        folder=folder,
        result=result,
        processes=procs.world,
        rank=procs.rank,
        report=close_run(folder, result, images, config, procs),
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
    """Continue a run, with some settings that no weight depends on changed (``kimg=200``).

    Raises:
        TrainingError: there is no such run, no checkpoint, or its data are others now.
    """
    procs = processes(device)
    folder = Path(folder)
    settings = read_settings(folder)
    about = settings["data"]
    images = open_images(
        about["path"],
        resolution=about["resolution"],
        channels=about["channels"],
        conditional=about["conditional"],
        progress=progress,
    )
    if len(images) != about["images"]:
        raise TrainingError(
            f"{about['path']} has {len(images)} images now, and had {about['images']} when the run "
            "began: it can't be continued exactly. Put them back, or start from its snapshot "
            "(finetune)."
        )
    if about.get("fingerprint", images.fingerprint) != images.fingerprint:  # older runs have none
        raise TrainingError(
            f"the images of {about['path']} have other names or sizes than when the run began: it "
            "can't be continued exactly. Put them back, or start from its snapshot (finetune)."
        )
    images = replace(images, classes=about["classes"])
    config = TrainConfig.from_dict({**settings["config"], **changes})
    facts = settings["discriminator"]
    kept: dict[str, Any] = {**facts, "augment": tuple(facts["augment"])}
    snap = load_snapshot(folder / START)
    generator = snap.module("G")
    ema = snap.generator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the backbone comes from the checkpoint, like all else
        judge = new_discriminator(DiscriminatorFacts(**kept), weights="random")
    if procs.rank == 0:
        write_settings(folder, {**settings, "config": config.to_dict()})
    return _train(
        generator, judge, images, config, procs,
        folder=folder, ema=ema, again=True, progress=progress, report=report,
    )  # fmt: skip
