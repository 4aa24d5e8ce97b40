"""Runs by their folders: started from settings, or from a file, and continued by name alone."""

from __future__ import annotations

import copy
import json
import platform
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsconvert.errors import OutputError, TrainingError, UsageError
from dsconvert.images import whole_file
from dsconvert.lite0 import Weights
from dsconvert.pipeline import cost
from dsconvert.snapshot import load_snapshot, new_snapshot, save_snapshot
from dsconvert.train.config import TrainConfig
from dsconvert.train.data import ImageSet, open_images
from dsconvert.train.ema import same_structure
from dsconvert.train.loop import Progress, TrainResult, train
from dsconvert.train.processes import Processes, processes
from dsconvert.train.setup import (
    DiscriminatorFacts,
    NewGenerator,
    discriminator_of,
    facts_of,
    new_discriminator,
    new_generator,
    official_saver,
)

SETTINGS = "settings.json"
START = "start.pkl"
Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A run's folder, and how it ended."""

    folder: Path
    result: TrainResult
    processes: int
    rank: int


def _folder(out: str | Path, name: str | None, default: str, procs: Processes) -> Path:
    """``OUT/NAME``, or the next number with what the run is, as the official code names runs."""
    found: Path | str | None = None
    if procs.rank == 0:
        base = Path(out)
        if name is None:
            taken = [
                int(m[1])
                for p in (base.iterdir() if base.is_dir() else ())
                if (m := re.match(r"(\d{5})-", p.name))
            ]
            found = base / f"{max(taken, default=-1) + 1:05d}-{default}"
        else:
            found = base / name
        if found.exists() and (not found.is_dir() or any(found.iterdir())):
            found = f"{found} exists; continue it with --resume {found}, or give another --name."
        else:
            try:
                found.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                found = f"the run's folder {found} can't be made: {error}."
    shared = procs.share(found)
    if isinstance(shared, str):
        raise OutputError(shared)
    return Path(shared)


def _write(folder: Path, settings: Mapping[str, Any]) -> None:
    with whole_file(folder / SETTINGS, overwrite=True) as beside:
        beside.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _environment(procs: Processes) -> dict[str, Any]:
    device = procs.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": f"{device} {name}".strip(),
        "processes": procs.world,
    }


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
    images = open_images(
        data,
        resolution=wanted.resolution,
        channels=wanted.img_channels,
        conditional=conditional,
        progress=progress,
    )
    wanted = replace(wanted, classes=images.classes)
    generator, plan = new_generator(wanted, seed=config.seed)
    facts = discriminator or DiscriminatorFacts(resolution=wanted.resolution)
    facts = replace(facts, resolution=wanted.resolution, classes=images.classes)
    judge = new_discriminator(facts, weights=backbone, seed=config.seed)
    kind = wanted.cfg if wanted.preset == "none" else f"{wanted.cfg}-{wanted.preset}"
    default = f"{kind}-{Path(data).stem}-{wanted.resolution}-batch{config.batch}"
    about = {
        "command": "train",
        "generator": asdict(wanted),
        "plan": None if plan is None else json.loads(plan.to_json()),
    }
    return _begin(
        generator, None, judge, images, config, procs, about,
        folder=_folder(out, name, default, procs), data=data, progress=progress, report=report,
    )  # fmt: skip


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
        discriminator: structure of a new one.
        device: for example ``cuda:0``; found by itself.
        progress: see :func:`dsconvert.train.train`.
        report: likewise.
    """
    procs = processes(device)
    snap = load_snapshot(snapshot)
    facts = snap.config
    classes = int(facts["classes"])
    images = open_images(
        data,
        resolution=int(facts["resolution"]),
        channels=int(facts["img_channels"]),
        conditional=classes > 0,
        progress=progress,
    )
    if images.classes > classes:
        raise UsageError(
            f"{data} has {images.classes} classes, and the generator of {snapshot} {classes}."
        )
    if images.classes < classes:
        images = replace(images, classes=classes)
    ema = snap.generator
    generator = snap.module("G") if snap.has_module("G") else None
    own_generator = generator is not None and same_structure(generator, ema)
    if generator is None or not own_generator:  # G_ema alone was converted, or G is an empty module
        generator = copy.deepcopy(ema)
    judge = None if new_heads else discriminator_of(snap)
    own = judge is not None
    if judge is None:
        wanted = discriminator or DiscriminatorFacts(resolution=images.resolution)
        wanted = replace(wanted, resolution=images.resolution, classes=classes)
        judge = new_discriminator(wanted, weights=backbone, seed=config.seed)
    about = {
        "command": "finetune",
        "snapshot": str(snapshot),
        "generator": {k: v for k, v in facts.items() if isinstance(v, str | int | float | bool)},
        "starts_from": "G" if own_generator else "G_ema",
        "discriminator_from_file": own,
    }
    default = f"finetune-{Path(snapshot).stem}-{Path(data).stem}-{images.resolution}"
    return _begin(
        generator, ema, judge, images, config, procs, about,
        folder=_folder(out, name, default, procs), data=data, progress=progress, report=report,
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
    folder: Path,
    data: str | Path,
    progress: Progress | None,
    report: Report | None,
) -> RunResult:
    if procs.rank == 0:
        spent = cost(generator)
        _write(
            folder,
            {
                "dsconvert_run": 1,
                **about,
                "data": {
                    "path": str(Path(data).resolve()),
                    "images": len(images),
                    "resolution": images.resolution,
                    "channels": images.channels,
                    "conditional": images.labels is not None,
                    "classes": images.classes,
                    "skipped": list(images.skipped),
                },
                "discriminator": asdict(facts_of(judge)),
                "config": config.to_dict(),
                "cost": {"parameters": spent.params, "macs": spent.macs},
                "environment": _environment(procs),
            },
        )
        # The structure that checkpoints are loaded into, whatever made it.
        save_snapshot(new_snapshot(generator), generator, folder / START, overwrite=True)
    result = train(
        generator,
        judge,
        images,
        config,
        out=folder,
        ema=ema,
        save=official_saver(images, mirror=config.mirror),
        procs=procs,
        progress=progress,
        report=report,
    )
    return RunResult(folder=folder, result=result, processes=procs.world, rank=procs.rank)


def read_settings(folder: str | Path) -> dict[str, Any]:
    """A run's ``settings.json``.

    Raises:
        TrainingError: there is no run in ``folder``.
    """
    try:
        settings: Any = json.loads((Path(folder) / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{folder} is no run that can be continued ({error}); name a folder that holds "
            f"{SETTINGS}."
        ) from error
    if not isinstance(settings, dict) or settings.get("dsconvert_run") != 1:
        raise TrainingError(f"{Path(folder) / SETTINGS} is not of a run of this dsconvert.")
    return settings


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
        _write(folder, {**settings, "config": config.to_dict()})
    result = train(
        generator,
        judge,
        images,
        config,
        out=folder,
        ema=ema,
        save=official_saver(images, mirror=config.mirror),
        resume=True,
        procs=procs,
        progress=progress,
        report=report,
    )
    return RunResult(folder=folder, result=result, processes=procs.world, rank=procs.rank)
