"""Measure the student against the teacher on held-out latents."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dsconvert.data.pictures import psnr
from dsconvert.matching.batches import TeacherBatches
from dsconvert.matching.loss import Scales, weighted_sum

_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class HeldOutScore:
    """The distance of the student to the teacher on held-out latents.

    ``distance`` is the loss without its adversarial term; ``terms`` are its parts; ``psnr`` is in
    dB, the mean over images.
    """

    distance: float
    terms: dict[str, float]
    psnr: float


@dataclass(frozen=True, kw_only=True)
class HeldOutEvaluation:
    """A score, and some of the images behind it, on the CPU."""

    score: HeldOutScore
    teacher: Tensor
    student: Tensor


@torch.no_grad()
def evaluate_student(batches: TeacherBatches, scales: Scales) -> HeldOutEvaluation:
    """Measure the student on the held-out latents, which are the same in every evaluation.

    The student runs in eval mode and stays in it.
    """
    objective, config = batches.objective, batches.config
    objective.student.eval()
    count = max(1, -(-config.held_out // config.batch))
    direct = [n for n in objective.blocks if n not in objective.readouts]
    # A read-out's matrix is solved on these very latents: a property of the student alone.
    through = {n: readout.fresh() for n, readout in objective.readouts.items()}
    sums: dict[str, float] = {}
    ratios: list[Tensor] = []
    wanted: list[Tensor] = []
    shown: list[Tensor] = []
    for i in range(count):
        target = batches.held_out(i)
        made = objective.run_student(target)
        for name, moments in through.items():
            moments.add(made.blocks[name], target.blocks[name])
        compared = replace(made, blocks={n: made.blocks[n] for n in direct})
        terms = objective.terms(target, compared, scales)
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value) / count
        ratios.append(psnr(made.image, target.image))
        if sum(map(len, shown)) < _SHOWN:
            wanted.append(target.image.cpu())
            shown.append(made.image.cpu())
    if through:
        found = [moments.unexplained(scales.blocks[n]) for n, moments in through.items()]
        sums["blocks"] = (sums.get("blocks", 0.0) * len(direct) + sum(found)) / (
            len(direct) + len(found)
        )
    score = HeldOutScore(
        distance=weighted_sum(sums, config), terms=sums, psnr=float(torch.cat(ratios).mean())
    )
    return HeldOutEvaluation(
        score=score, teacher=torch.cat(wanted)[:_SHOWN], student=torch.cat(shown)[:_SHOWN]
    )
