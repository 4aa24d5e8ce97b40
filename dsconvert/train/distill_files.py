"""Distillation of a file: its ``G_ema`` learns, everything else in it stays as it was."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsconvert.errors import UsageError
from dsconvert.images import check_target, save_png, side_by_side, whole_file
from dsconvert.inputs import sampler_of
from dsconvert.lite0 import Weights
from dsconvert.metrics import sample_images
from dsconvert.pipeline import cost
from dsconvert.records import Cost
from dsconvert.report.html import write_report
from dsconvert.report.jsonable import finite, layer_rows
from dsconvert.snapshot import load_snapshot, save_snapshot
from dsconvert.train.distill import Distilled, distill
from dsconvert.train.distill_config import DistillConfig
from dsconvert.train.distill_loop import Progress

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


def best_device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
    progress: Progress | None = None,
) -> FileDistillation:
    """Teach the ``G_ema`` of ``student`` to make the images of ``teacher``'s.

    Args:
        teacher: a snapshot; its ``G_ema`` is the original.
        student: a converted snapshot; every other entry of it is written to ``out`` unchanged.
        out: the file to write, whole or not at all.
        config: how long, how fast, and what the student is held to.
        folder: of the run (statistics, grids, checkpoints, report); None: see :func:`run_folder`.
        resume: continue the run in ``folder``.
        overwrite: whether ``out`` may exist.
        weights: of the backbone.
        device: where to work; None: a GPU where there is one.
        progress: see :data:`dsconvert.train.distill_loop.Progress`.

    Raises:
        UsageError: the two generators do not fit each other, or the folder holds another run.
        OutputError: ``out`` or ``folder`` can't be written.
        DsconvertError: see :func:`dsconvert.train.distill.distill`.
    """
    check_target(out, overwrite=overwrite)
    place = run_folder(out) if folder is None else Path(folder)
    original = load_snapshot(teacher).generator
    snap = load_snapshot(student)
    fast = snap.generator
    mine, theirs = _shape(fast), _shape(original)
    if mine != theirs:
        raise UsageError(
            f"{student} takes and makes {mine}, {teacher} {theirs}: one can't learn from the other."
        )
    inputs = sampler_of(original)
    done = distill(
        original,
        fast,
        inputs,
        config=config,
        folder=place,
        resume=resume,
        weights=weights,
        device=device or best_device(),
        settings={"teacher": str(teacher), "student": str(student), "out": str(out)},
        progress=progress,
    )
    save_snapshot(snap, done.student, out, overwrite=overwrite)
    before, after = cost(original), cost(done.student)
    rows = {
        label: sample_images(m, inputs, samples=_SHOWN, seed=config.seed + 1, batch=_SHOWN)
        for label, m in (("teacher", original), ("before", fast), ("distilled", done.student))
    }
    save_png(side_by_side(rows, with_psnr=True), place / "side_by_side.png", overwrite=True)
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
    if before.macs and after.macs:
        found["MACs"] = after.macs
        found["times fewer MACs"] = before.macs / after.macs
    return found


def _write(path: Path, data: Any) -> None:
    with whole_file(path, overwrite=True) as beside:
        beside.write_text(json.dumps(finite(data), indent=1) + "\n", encoding="utf-8")
