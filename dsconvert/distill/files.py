"""Distil the generators of a file; every other entry of the file stays as it is."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsconvert.config.distill import DistillConfig
from dsconvert.config.pictures import Pictures
from dsconvert.core.pipeline import cost
from dsconvert.data.pictures import save_picture, side_by_side
from dsconvert.data.spectrograms import pictured
from dsconvert.distill.api import Distilled, distill
from dsconvert.errors import UsageError
from dsconvert.formats.alike import check_same_inputs
from dsconvert.formats.base import GeneratorFile, ModuleSource
from dsconvert.formats.given_inputs import with_inputs, with_pictures
from dsconvert.formats.registry import open_file
from dsconvert.formats.save_file import check_output, save_file
from dsconvert.metrics import sample_images
from dsconvert.model.inputs import RandomPixels, held_out_inputs, needs_pictures
from dsconvert.projected.lite0 import Weights
from dsconvert.records import Cost
from dsconvert.report.jsonable import finite, layer_rows
from dsconvert.runs.folder import RunFolder, write_json
from dsconvert.runs.report import write_report
from dsconvert.train.ema import same_structure
from dsconvert.util.devices import for_work
from dsconvert.util.files import check_target
from dsconvert.util.folders import sha256
from dsconvert.util.numbers import times_fewer
from dsconvert.util.progress import Progress, reports_progress

_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class FileDistillation:
    """The result of distilling a file: the student, the costs, and the files written."""

    distilled: Distilled
    before: Cost
    after: Cost
    out: Path
    folder: Path
    report: Path


def run_folder(out: str | os.PathLike[str]) -> Path:
    """Return the default folder of the run of ``out``: ``fast2-run`` beside ``fast2.pkl``."""
    path = Path(out)
    return path.with_name(f"{path.stem}-run")


@reports_progress
def distill_snapshot(
    teacher: str | os.PathLike[str],
    student: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    config: DistillConfig,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    weights: Weights = "auto",
    device: torch.device | str | None = None,
    module: ModuleSource | None = None,
    pictures: Pictures | None = None,
    progress: Progress | None = None,
) -> FileDistillation:
    """Train the main generator of ``student`` (``G_ema``) to make the images of ``teacher``.

    Args:
        teacher: a file of any known format, with the original.
        student: its conversion. In ``out`` all generators of one structure (``G`` beside
            ``G_ema``) get the trained weights, so that training can continue from them; every
            other entry is written unchanged.
        out: the file to write, whole or not at all; its suffix means the same as for
            :func:`dsconvert.save_file`.
        config: length, learning rate and loss.
        folder: of the run (statistics, grids, checkpoints, report); None: see :func:`run_folder`.
        resume: continue the run in ``folder``.
        overwrite: whether ``out`` may exist.
        weights: of the backbone.
        device: where to work; None: a GPU where there is one.
        module: the factory of a generator that no adapter knows.
        pictures: the inputs of a generator that reads pictures (sounds, the rows of a ``.npz``); a
            part of them is held out and judges.
        progress: see :func:`dsconvert.distill.api.distill`.

    Raises:
        UsageError: the two generators do not fit each other, their inputs are unknown, torch can't
            use the device, or the folder holds another run.
        OutputError: ``out`` or ``folder`` can't be written.
        DsconvertError: see :func:`dsconvert.distill.api.distill`.
    """
    check_target(out, overwrite=overwrite)
    place = run_folder(out) if folder is None else Path(folder)
    run = RunFolder.of_distillation(place)
    first, snap = open_file(teacher, module=module), open_file(student, module=module)
    if pictures is not None:
        first = with_pictures(first, pictures)
        snap = snap if first.given is None else with_inputs(snap, first.given)
    check_output(snap, out, overwrite=overwrite)
    digests = {"teacher": sha256(teacher), "student": sha256(student)}
    original, fast = first.generator, snap.generator
    inputs = first.inputs()
    if inputs is None:
        raise UsageError(f"the inputs of the generator of {teacher} are unknown; give --input.")
    if isinstance(inputs, RandomPixels):
        raise UsageError(f"{needs_pictures(f'the generator of {teacher}', inputs)}.")
    check_same_inputs(snap, first, otherwise="one can't learn from the other")
    # A generator may return more than a picture; then a wrapper picks the picture out.
    wrapped_teacher, wrapped_student = first.picture(), snap.picture()
    name_in_wrapper = next(n for n, m in wrapped_student.named_modules() if m is fast)
    done = distill(
        wrapped_teacher,
        wrapped_student,
        inputs,
        config=config,
        folder=place,
        resume=resume,
        weights=weights,
        device=for_work(device),
        sounds=first.sounds() is not None,
        settings={"teacher": str(teacher), "student": str(student), "out": str(out)},
        files=digests,
        progress=progress,
    )
    trained = done.student.get_submodule(name_in_wrapper)
    models = _trained_generators(snap, trained, changed=done.best_step > 0)
    save_file(snap, models, out, overwrite=overwrite)
    example = inputs(1, torch.Generator().manual_seed(0))
    before, after = cost(original, example), cost(trained, example)
    rows = {
        label: pictured(
            sample_images(
                m, held_out_inputs(inputs), samples=_SHOWN, seed=config.seed + 1, batch=_SHOWN
            )
        )
        for label, m in (
            ("teacher", wrapped_teacher),
            ("before", wrapped_student),
            ("distilled", done.student),
        )
    }
    save_picture(side_by_side(rows, with_psnr=True), run.side_by_side, overwrite=True)
    write_json(run.layers, finite(layer_rows(before, after)))
    write_json(run.results, finite(_results(done, before, after)))
    return FileDistillation(
        distilled=done,
        before=before,
        after=after,
        out=Path(out),
        folder=place,
        report=write_report(place),
    )


def _trained_generators(
    snap: GeneratorFile, trained: nn.Module, *, changed: bool
) -> dict[str, nn.Module]:
    """Return ``trained`` for the main generator, and a copy for each one of its structure.

    ``finetune`` and the official trainer continue with ``G`` and average it into ``G_ema``: an old
    ``G`` would undo the distillation. If the start was the best student (not ``changed``), the
    other generators stay as they were.
    """
    main, *others = snap.generators
    models = {main: trained}
    for key in others:
        if changed and same_structure(snap.module(key), trained):
            models[key] = copy.deepcopy(trained)
    return models


def _results(done: Distilled, before: Cost, after: Cost) -> dict[str, Any]:
    found: dict[str, Any] = {
        "ended by": done.reason,
        "steps": done.steps,
        "minutes": done.seconds / 60,
        "distance before": done.before.distance,
        "distance after": done.after.distance,
        "PSNR before, dB": done.before.psnr,
        "PSNR after, dB": done.after.psnr,
        "parameters": after.params,
    }
    if done.best_step != done.steps:
        found |= {
            "student of step": done.best_step,
            "distance after the last step": done.end.distance,
            "PSNR after the last step, dB": done.end.psnr,
        }
    if before.macs and after.macs:
        found["MACs"] = after.macs
        found |= times_fewer(before.macs, after.macs, "MACs")
    return found
