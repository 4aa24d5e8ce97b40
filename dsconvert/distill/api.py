"""Distillation: a converted generator learns the rest from its original, without data.

Latents are free, so teacher and student see the same ones (and the same noise draws) and the
student is held to what the teacher makes of them: first, if asked, each block alone on the
teacher's inputs, then the whole network end to end. Batch n depends on nothing but the seed and n,
so a run that was cut off continues as if it had not been.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsconvert.core.pipeline import apply, plan
from dsconvert.distill.config import DistillConfig
from dsconvert.distill.folder import Folder
from dsconvert.distill.judge import Held, Lessons
from dsconvert.distill.loop import Loop, Progress, Reason, Result, clock
from dsconvert.distill.loss import Objective, ProjectedMaps, trunk_blocks
from dsconvert.errors import DsconvertError, UsageError
from dsconvert.model.editing import copied
from dsconvert.model.graph import ConvTypes
from dsconvert.model.inputs import sampler_of
from dsconvert.model.norms import fold, norm_kind
from dsconvert.projected.lite0 import Weights
from dsconvert.util.memory_format import in_channels_last
from dsconvert.util.progress import reports_progress

Inputs = Callable[[int, torch.Generator], tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """A student after its lessons, and how they went.

    ``before`` and ``after`` are its distances to the teacher on latents that it was never trained
    on. The student is that of the best evaluation, the start included, made after ``best_step``
    steps; ``end`` is the distance after the last step; ``notes`` say so where the two differ.
    ``rows`` are the lines of ``stats.jsonl``; ``seconds`` are of ``config.clock``.
    """

    student: nn.Module
    steps: int
    seconds: float
    reason: Reason
    before: Held
    after: Held
    end: Held
    best_step: int
    blocks: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


def fast_teacher(model: nn.Module, *, inputs: Inputs | None = None) -> nn.Module:
    """A copy of ``model`` that makes the same images in less time: norms folded, upsamples merged.

    Where the model can't be traced it is copied with its norms folded.
    """
    try:
        decided = plan(model, preset="exact", inputs=inputs)
        made = apply(model, decided, init="svd", calibrate=0, inputs=inputs).model
    except DsconvertError:
        made = copied(model)
    for module in made.modules():
        if isinstance(module, ConvTypes) and norm_kind(module) != "none":
            fold(module)
    return made


@reports_progress
def distill(
    teacher: nn.Module,
    student: nn.Module,
    inputs: Inputs | None = None,
    *,
    config: DistillConfig,
    blocks: Sequence[str] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    weights: Weights = "auto",
    device: torch.device | str | None = None,
    settings: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Distilled:
    """Teach ``student`` to make the images that ``teacher`` makes.

    Args:
        teacher: the original; left as it was.
        student: its conversion (or any module that takes the same arguments and gives images of
            the same size); left as it was, the result is a copy.
        inputs: ``inputs(n, generator)`` returns the arguments of a call with batch n; None: the
            teacher's adapter knows.
        config: how long, how fast, and what the student is held to.
        blocks: names of the modules whose outputs are compared; None: those that make the picture.
            What does not run once on both sides, in one shape, is left out; a note says so.
        folder: where ``stats.jsonl``, sample grids and checkpoints go; None: nowhere.
        resume: continue from the newest checkpoint in ``folder``.
        weights: of the backbone, see :func:`dsconvert.projected.lite0.lite0`.
        device: where to work; None: where the teacher is.
        settings: further facts for ``settings.json`` (the files' names, say).
        progress: see :data:`dsconvert.distill.loop.Progress`.

    Raises:
        UsageError: the two do not fit each other, or the folder holds another run.
        MissingExtraError: the backbone's weights are not installed (``features=0`` needs none).
        TrainingError: the loss is no longer finite, or the checkpoint can't be read.
        KeyboardInterrupt: the user stopped it. From the first step on, a checkpoint was written
            (where there is a folder); before, there is nothing to keep.
    """
    if folder is None and resume:
        raise UsageError("a run is resumed from its folder; none was given.")
    # All of it is counted, getting ready included.
    began = clock(config)()
    sampler = inputs or sampler_of(teacher)
    # What can be refused is refused before the work begins.
    kept = None if folder is None else Folder(Path(folder), config, resume=resume)
    start = next((p for p in teacher.parameters()), None)
    place = torch.device(device or (start.device if start is not None else "cpu"))
    fast = fast_teacher(teacher, inputs=sampler).to(place).float().eval().requires_grad_(False)
    pupil = copy.deepcopy(copied(student)).to(place).float()
    if place.type == "cpu":
        # oneDNN runs these small, wide maps in two thirds of the time so.
        fast, pupil = in_channels_last(fast), in_channels_last(pupil)
    features = None
    if config.features:
        features = ProjectedMaps(size=config.feature_size, weights=weights).to(place)
        if place.type == "cpu":
            features = in_channels_last(features)
    names = tuple(trunk_blocks(fast) if blocks is None else blocks)
    unknown = [n for n in names if n not in dict(fast.named_modules())]
    if unknown:
        raise UsageError(f"the teacher has no module called {', '.join(unknown)}.")
    objective = Objective(fast, pupil, blocks=names, features=features)
    loop = Loop(
        Lessons(objective, sampler, config),
        config,
        began=began,
        folder=kept,
        settings=settings or {},
        progress=progress,
        weights=weights,
    )
    result = loop.run()
    notes = _verdict(result)
    lost = [n for n in names if n not in objective.blocks]
    if lost:
        notes.append(
            f"not compared, since not both run them once and in one shape: {', '.join(lost)}"
        )
    return Distilled(
        student=_as(pupil, student),
        steps=result.steps,
        seconds=result.seconds,
        reason=result.reason,
        before=result.before,
        after=result.after,
        end=result.end,
        best_step=result.best_step,
        blocks=objective.blocks,
        rows=tuple(result.rows),
        notes=tuple(notes),
    )


def _verdict(result: Result) -> list[str]:
    """Say which student is handed back, where it is not that of the last step."""
    if not result.steps:
        return [
            "not one step was made: getting ready and judging the start took the whole time. The "
            "student is unchanged; give it more --minutes"
        ]
    if result.best_step == result.steps:
        return []
    end = (
        f"after the last step the distance is {result.end.distance:.4g} and the PSNR "
        f"{result.end.psnr:.2f} dB"
    )
    if result.best_step:
        return [f"the student is that of step {result.best_step}, the best that was judged: {end}"]
    return [
        f"no evaluation was better than the start, so the student is unchanged: {end}. Train for "
        "longer, or with a lower rate (--lr)"
    ]


def _as(made: nn.Module, like: nn.Module) -> nn.Module:
    """``made`` with dtype, device, modes and gradient flags of ``like``, in plain memory order."""
    for mine, theirs in zip(made.parameters(), like.parameters(), strict=True):
        mine.data = mine.data.to(theirs.device, theirs.dtype).contiguous()
        mine.requires_grad_(theirs.requires_grad)
        mine.grad = None
    for mine, theirs in zip(made.buffers(), like.buffers(), strict=True):
        mine.data = mine.data.to(theirs.device, theirs.dtype).contiguous()
    for mine, theirs in zip(made.modules(), like.modules(), strict=True):
        mine.training = theirs.training
    return made
