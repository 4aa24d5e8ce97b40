"""Distil one module from another: reduce the error that remains after fitting, without data.

Teacher and student get the same latents and the same noise draws, and the student is trained to
reproduce the teacher's outputs: first, if the settings ask for it, each block by itself on the
teacher's inputs, then the whole network end to end. Batch n depends on the seed and n alone, so a
resumed run ends as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsconvert.config.distill import DistillConfig
from dsconvert.core.fast_teacher import fast_teacher
from dsconvert.distill.critic import Critic
from dsconvert.distill.run import DistillationRun
from dsconvert.errors import UsageError
from dsconvert.matching.batches import SCALES
from dsconvert.matching.evaluator import HeldOutScore
from dsconvert.matching.loop import Loop, LoopResult, clock
from dsconvert.matching.protocols import Reason
from dsconvert.matching.setup import as_given, not_compared, teacher_batches, working_copy
from dsconvert.model.inputs import Inputs, checked, sampler_of
from dsconvert.model.observe import undisturbed
from dsconvert.projected.lite0 import Weights
from dsconvert.util.progress import Progress, reports_progress


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """A distilled student, with its scores and statistics.

    ``before`` and ``after`` are its distances to the teacher on held-out latents. The student is
    that of the best evaluation (the start is one of them), made after ``best_step`` steps; ``end``
    is the distance after the last step, and ``notes`` say so if the two differ. ``rows`` are the
    lines of ``stats.jsonl``; ``seconds`` are measured by ``config.clock``.
    """

    student: nn.Module
    steps: int
    seconds: float
    reason: Reason
    before: HeldOutScore
    after: HeldOutScore
    end: HeldOutScore
    best_step: int
    blocks: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


@reports_progress
@undisturbed()
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
    sounds: bool = False,
    settings: dict[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Distilled:
    """Train ``student`` to make the images of ``teacher``.

    Args:
        teacher: the original; it does not change.
        student: its conversion (or any module that takes the same arguments and makes images of
            the same size); it does not change, the result is a copy.
        inputs: ``inputs(n, generator)`` returns the arguments of a call with batch n; None: the
            sampler of the teacher's adapter.
        config: length, learning rate and loss.
        blocks: names of the modules whose outputs are compared; None: those that make the picture.
            A module whose map has other channels on both sides is compared through a read-out
            (:mod:`dsconvert.matching.readout`); one that does not run exactly once on both sides,
            with one size, is left out. Notes say so.
        folder: for ``stats.jsonl``, sample grids and checkpoints; None: they are not written.
        resume: continue from the newest checkpoint in ``folder``.
        weights: of the backbone, see :func:`dsconvert.projected.lite0.lite0`.
        device: where to work; None: the teacher's device.
        sounds: the outputs are sounds (N, 1, 1, T): the features are their spectra, compared by
            the multi-resolution STFT distance.
        settings: further facts for ``settings.json`` (the files' names, say).
        files: SHA-256 of the files of both, by role; a resumed run must have the same.
        progress: see :data:`dsconvert.util.progress.Progress`; the unit is that of the run's end.

    Raises:
        UsageError: the student does not fit the teacher, or the folder holds another run.
        MissingExtraError: the backbone's weights are not installed (``features=0`` needs none).
        TrainingError: the loss is no longer finite, the checkpoint can't be read, or another
            process trains in the folder.
        KeyboardInterrupt: the user stopped it. From the first step on, a checkpoint was written
            (where there is a folder); before, there is nothing to keep.
    """
    if folder is None and resume:
        raise UsageError("a run is resumed from its folder; none was given.")
    # The set-up counts towards the run's minutes.
    began = clock(config)()
    sampler = sampler_of(teacher) if inputs is None else checked(inputs)
    # Check the folder before any work.
    run = None
    if folder is not None:
        run = DistillationRun(Path(folder), config, resume=resume, files=files)
    start = next((p for p in teacher.parameters()), None)
    place = torch.device(device or (start.device if start is not None else "cpu"))
    trained = working_copy(student)
    batches = teacher_batches(
        fast_teacher(teacher, inputs=sampler),
        trained,
        sampler,
        config=config,
        blocks=blocks,
        weights=weights,
        sounds=sounds,
        device=place,
    )
    critic = None
    if config.adversarial:
        critic = Critic(batches.target(SCALES), lr=config.lr_discriminator, weights=weights)
    with nullcontext() if run is None else run.alone():
        loop = Loop(
            batches,
            config,
            began=began,
            critic=critic,
            record=run,
            facts=settings,
            progress=progress,
        )
        result = loop.run()
    notes = _notes(result)
    if lost := not_compared(batches, blocks):
        notes.append(
            f"not compared, since they do not run once and with one size on both sides: "
            f"{', '.join(lost)}"
        )
    if readouts := batches.objective.readouts:
        notes.append(
            f"compared through a least-squares read-out, since their channels differ: "
            f"{', '.join(readouts)}"
        )
    return Distilled(
        student=as_given(trained, student),
        steps=result.steps,
        seconds=result.seconds,
        reason=result.reason,
        before=result.before,
        after=result.after,
        end=result.end,
        best_step=result.best_step,
        blocks=batches.objective.blocks,
        rows=tuple(result.rows),
        notes=tuple(notes),
    )


def _notes(result: LoopResult) -> list[str]:
    """Return a sentence about the student if it is not that of the last step."""
    if not result.steps:
        return [
            "not one step was made: the set-up and the first evaluation took the whole time. The "
            "student is unchanged; give more --minutes"
        ]
    if result.best_step == result.steps:
        return []
    end = (
        f"after the last step the distance is {result.end.distance:.4g} and the PSNR "
        f"{result.end.psnr:.2f} dB"
    )
    if result.best_step:
        return [f"the student is that of step {result.best_step}, the best evaluation: {end}"]
    return [
        f"no evaluation was better than the start, so the student is unchanged: {end}. Train for "
        "longer, or with a lower rate (--lr)"
    ]
