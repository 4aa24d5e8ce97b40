"""What teacher and student are asked, and how the student is judged.

Batches are numbered, and a batch depends on nothing but the run's seed and its number: training,
the measurement of the scales and the held-out judge each have numbers of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsconvert.data.pictures import psnr
from dsconvert.distill.config import DistillConfig
from dsconvert.distill.loss import Objective, Scales, Target
from dsconvert.errors import UsageError

HELD, SCALES, TRAINING = 0, 100_000, 1_000_000
"""The first number of each purpose."""
_RANGE = 4_000_037
"""Numbers of one seed; the next seed's begin there."""
_FOR_SCALES = 48
_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Held:
    """How far the student is from the teacher on held-out latents.

    ``distance`` is the loss without its adversarial term; ``terms`` are its parts; ``psnr`` is in
    dB, the mean over images.
    """

    distance: float
    terms: dict[str, float]
    psnr: float


class Lessons:
    """Numbered batches of one run.

    Args:
        objective: the pair and how far apart they are.
        inputs: ``inputs(n, generator)`` returns the arguments of a call with batch n.
        config: of the run.

    Raises:
        UsageError: the pair's images differ in size, or nothing is left to compare.
    """

    def __init__(
        self,
        objective: Objective,
        inputs: Callable[[int, torch.Generator], tuple[Any, ...]],
        config: DistillConfig,
    ) -> None:
        self.objective, self.inputs, self.config = objective, inputs, config
        self.device = next(objective.student.parameters()).device
        self._fits()

    def target(self, number: int, *, maps: bool = True) -> Target:
        """The teacher's side of batch ``number``."""
        seed = self.config.seed * _RANGE + number
        args = self.inputs(self.config.batch, torch.Generator().manual_seed(seed))
        placed = tuple(
            (a.to(self.device, torch.float32) if a.is_floating_point() else a.to(self.device))
            if isinstance(a, Tensor)
            else a
            for a in args
        )
        return self.objective.teach(placed, seed, maps=maps)

    def _fits(self) -> None:
        """Refuse a pair that does not fit, and find the blocks that both have."""
        target = self.target(SCALES)
        self.objective.student.eval()
        names = self.objective.compatible(target)
        with torch.no_grad():
            image, _ = self.objective.learn(self.target(SCALES))
        if image.shape != target.image.shape:
            raise UsageError(
                f"the student's images are {list(image.shape[1:])}, the teacher's "
                f"{list(target.image.shape[1:])}: one can't learn from the other."
            )
        c = self.config
        if not (c.image or c.features or (c.blocks and names)):
            raise UsageError(
                "only blocks were to be compared, and teacher and student share none: give image "
                "or features a weight."
            )
        if c.blockwise and not names:
            raise UsageError("teacher and student share no block: there is no blockwise stage.")

    def scales(self) -> Scales:
        """What each squared error is divided by."""
        batches = max(2, -(-_FOR_SCALES // self.config.batch))
        return self.objective.scales([self.target(SCALES + i) for i in range(batches)])

    def weighted(self, terms: dict[str, Tensor]) -> Tensor:
        """The loss of its terms."""
        c = self.config
        weights = {"image": c.image, "blocks": c.blocks, "features": c.features}
        return torch.stack([weights[n] * v for n, v in terms.items()]).sum()

    @torch.no_grad()
    def judge(self, scales: Scales) -> tuple[Held, Tensor, Tensor]:
        """The held-out distance, and some held-out images of teacher and student (on the CPU).

        The student runs in eval mode, and is left in it.
        """
        self.objective.student.eval()
        count = max(1, -(-self.config.held_out // self.config.batch))
        sums: dict[str, float] = {}
        ratios: list[Tensor] = []
        wanted: list[Tensor] = []
        made: list[Tensor] = []
        distance = 0.0
        for i in range(count):
            target = self.target(HELD + i)
            image, blocks = self.objective.learn(target)
            terms = self.objective.terms(target, image, blocks, scales)
            distance += float(self.weighted(terms)) / count
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value) / count
            ratios.append(psnr(image, target.image))
            if sum(map(len, made)) < _SHOWN:
                wanted.append(target.image.cpu())
                made.append(image.cpu())
        held = Held(distance=distance, terms=sums, psnr=float(torch.cat(ratios).mean()))
        return held, torch.cat(wanted)[:_SHOWN], torch.cat(made)[:_SHOWN]
