"""Distillation of a file: its generators become what was learnt; all else stays as it was."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsconvert.core.pipeline import cost
from dsconvert.data.pictures import save_picture, side_by_side
from dsconvert.distill.api import Distilled, distill
from dsconvert.distill.config import DistillConfig
from dsconvert.distill.loop import Progress
from dsconvert.errors import UsageError
from dsconvert.formats.base import GeneratorFile, ModuleSource
from dsconvert.formats.registry import open_file
from dsconvert.formats.save_file import check_output, save_file
from dsconvert.metrics import sample_images
from dsconvert.projected.lite0 import Weights
from dsconvert.records import Cost
from dsconvert.report.jsonable import finite, layer_rows
from dsconvert.report.text import times_fewer
from dsconvert.runs.report import write_report
from dsconvert.train.ema import same_structure
from dsconvert.util.devices import for_work
from dsconvert.util.files import check_target, whole_file
from dsconvert.util.progress import reports_progress

_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class FileDistillation:
    """What came of it, what both generators cost, and where it was written."""

    distilled: Distilled
    before: Cost
    after: Cost
    out: Path
    folder: Path
    report: Path


def run_folder(out: str | os.PathLike[str]) -> Path:
    """Where the run of ``out`` goes unless somebody says otherwise: ``fast2-run`` beside it."""
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
    progress: Progress | None = None,
) -> FileDistillation:
    """Teach the main generator of ``student`` (``G_ema``) to make the images of ``teacher``'s.

    Args:
        teacher: a file of any known kind, with the original.
        student: its conversion. In ``out`` the generators that are built alike (``G`` beside
            ``G_ema``) hold what was learnt, so that training goes on from there; every other
            entry is written unchanged.
        out: the file to write, whole or not at all; its suffix means the same as for
            :func:`dsconvert.save_file`.
        config: how long, how fast, and what the student is held to.
        folder: of the run (statistics, grids, checkpoints, report); None: see :func:`run_folder`.
        resume: continue the run in ``folder``.
        overwrite: whether ``out`` may exist.
        weights: of the backbone.
        device: where to work; None: a GPU where there is one.
        module: how to build the generator of a codebase that no adapter knows.
        progress: see :data:`dsconvert.distill.loop.Progress`.

    Raises:
        UsageError: the two generators do not fit each other, nobody knows their inputs, torch
            can't use the device, or the folder holds another run.
        OutputError: ``out`` or ``folder`` can't be written.
        DsconvertError: see :func:`dsconvert.distill.api.distill`.
    """
    check_target(out, overwrite=overwrite)
    place = run_folder(out) if folder is None else Path(folder)
    first, snap = open_file(teacher, module=module), open_file(student, module=module)
    check_output(snap, out, overwrite=overwrite)
    original, fast = first.generator, snap.generator
    inputs = first.inputs()
    if inputs is None:
        raise UsageError(f"nobody knows what the generator of {teacher} takes; give --input.")
    mine, theirs = _shape(fast), _shape(original)
    if mine != theirs:
        raise UsageError(
            f"{student} takes and makes {mine}, {teacher} {theirs}: one can't learn from the other."
        )
    # A codebase's generator may return more than a picture; what wraps it, and where it is within.
    seen, seeing = first.picture(), snap.picture()
    place_of_it = next(n for n, m in seeing.named_modules() if m is fast)
    done = distill(
        seen,
        seeing,
        inputs,
        config=config,
        folder=place,
        resume=resume,
        weights=weights,
        device=for_work(device),
        settings={"teacher": str(teacher), "student": str(student), "out": str(out)},
        progress=progress,
    )
    learnt = done.student.get_submodule(place_of_it)
    save_file(snap, _learnt_by(snap, learnt, moved=done.best_step > 0), out, overwrite=overwrite)
    example = inputs(1, torch.Generator().manual_seed(0))
    before, after = cost(original, example), cost(learnt, example)
    rows = {
        label: sample_images(m, inputs, samples=_SHOWN, seed=config.seed + 1, batch=_SHOWN)
        for label, m in (("teacher", seen), ("before", seeing), ("distilled", done.student))
    }
    save_picture(side_by_side(rows, with_psnr=True), place / "side_by_side.png", overwrite=True)
    _write(place / "layers.json", layer_rows(before, after))
    _write(place / "results.json", _results(done, before, after))
    return FileDistillation(
        distilled=done,
        before=before,
        after=after,
        out=Path(out),
        folder=place,
        report=write_report(place),
    )


def _learnt_by(snap: GeneratorFile, learnt: nn.Module, *, moved: bool) -> dict[str, nn.Module]:
    """``learnt`` for the main generator, and a copy for each that is built like it.

    Where the start was the best (not ``moved``), the others stay as they were, too.

    ``finetune`` and the official trainer go on with ``G`` and average it into ``G_ema``: an old
    ``G`` would take the lessons away again.
    """
    main, *others = snap.generators
    models = {main: learnt}
    for key in others:
        if moved and same_structure(snap.module(key), learnt):
            models[key] = copy.deepcopy(learnt)
    return models


def _shape(model: nn.Module) -> dict[str, Any]:
    """What two generators must share to be compared, as far as their classes say."""
    names = ("z_dim", "c_dim", "img_resolution", "img_channels")
    return {n: getattr(model, n) for n in names if hasattr(model, n)}


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


def _write(path: Path, data: Any) -> None:
    with whole_file(path, overwrite=True) as beside:
        beside.write_text(json.dumps(finite(data), indent=1) + "\n", encoding="utf-8")
