"""The best student of a run: the rule by which an evaluation is better, and its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dsconvert.config.distill import DistillConfig
from dsconvert.matching.evaluator import HeldOutScore
from dsconvert.model.copying import tensors_by_name

PSNR_TOLERANCE = 0.1
"""dB that the image may lose against the start while the distance falls. They are of the squared
error of all images together: where some pictures are nothing but background, of which every student
makes almost the original's, the mean of their own PSNR judges by these alone."""
PSNR_SHARE = 0.25
"""Or this share of the dB that the distance gains, if that is more: a good fit has the least
squared error already, and what it lacks are features. (A rank-3 form of a 128 px generator:
distance -1.9 dB, held-out image +0.2 dB, FD-lite0 from 1.31x to 1.04x of its noise floor.)"""
_ONE_PERCENT = 0.99


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of the start, of the best evaluation and of the last one."""

    start: HeldOutScore
    best: HeldOutScore
    last: HeldOutScore


class BestStudent:
    """Keeps the student of the best evaluation so far; the first evaluation is of the start.

    An evaluation is better if its held-out distance is the lowest so far and (if the image has a
    weight in the loss) the image has lost little since the start (:data:`PSNR_TOLERANCE`,
    :data:`PSNR_SHARE`). The held-out latents are the same in each evaluation, so the comparison has
    no sampling noise.

    Args:
        config: of the run.
    """

    def __init__(self, config: DistillConfig) -> None:
        self._config = config
        self.start: HeldOutScore | None = None
        self.score: HeldOutScore | None = None
        """Of the best evaluation."""
        self.last: HeldOutScore | None = None
        self.step, self.evaluated_at = 0, -1
        """Steps made at the best and at the newest evaluation."""
        self.lowest = math.inf
        """The lowest distance of any evaluation, whatever its PSNR; patience compares with it."""
        self.stale = 0
        """Evaluations in a row in which that fell by less than one percent."""
        self.state: dict[str, Tensor] = {}

    def add(self, score: HeldOutScore, student: nn.Module, *, step: int, counts: bool) -> None:
        """Take an evaluation into account.

        Args:
            score: of ``student``.
            student: copied if it is better.
            step: number of steps it has made.
            counts: whether patience counts this evaluation.
        """
        self.last, self.evaluated_at = score, step
        gained = score.distance < _ONE_PERCENT * self.lowest
        self.stale = 0 if gained else self.stale + counts
        if score.distance < self.lowest:
            self.lowest = score.distance
        if self.start is None or self.score is None:
            self.start = score
        elif not self._better(score, self.start, self.score):
            return
        self.score, self.step = score, step
        self.state = {k: v.clone() for k, v in tensors_by_name(student).items()}

    def _better(self, score: HeldOutScore, start: HeldOutScore, best: HeldOutScore) -> bool:
        # Any finite distance is better than a start that is not finite.
        least = best.distance if math.isfinite(best.distance) else math.inf
        if score.distance >= least:
            return False
        return not self._config.image or _fall(score, start) <= _allowed(score, start)

    def finished(self) -> Scores:
        """Return the scores of a run that has been evaluated at least once."""
        if self.start is None or self.score is None or self.last is None:
            raise RuntimeError("a run has no best student before its first evaluation.")
        return Scores(start=self.start, best=self.score, last=self.last)

    def checkpoint(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        scores = self.finished()
        return {
            "best": scores.best.distance,
            "best_state": self.state,
            "best_step": self.step,
            "before": vars(scores.start),
            "after": vars(scores.best),
            "last": vars(scores.last),
            "judged": self.evaluated_at,
            "lowest": self.lowest,
            "stale": self.stale,
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Load the state of :meth:`checkpoint`.

        Checkpoints of older versions lack some of it; their rows of statistics have the values.
        """
        self.state, self.stale = data["best_state"], data["stale"]
        self.start, self.score = HeldOutScore(**data["before"]), HeldOutScore(**data["after"])
        self.lowest = data.get("lowest", data["best"])
        rows: Sequence[Mapping[str, Any]] = [r for r in data["rows"] if "held_distance" in r]
        self.last = HeldOutScore(**data["last"]) if "last" in data else _score_of(rows[-1])
        self.evaluated_at = data["judged"] if "judged" in data else rows[-1]["step"]
        if "best_step" in data:
            self.step = data["best_step"]
        else:
            same = [r["step"] for r in rows if r["held_distance"] == data["best"]]
            self.step = same[0] if same else self.evaluated_at


def _allowed(score: HeldOutScore, start: HeldOutScore) -> float:
    """Return the dB that the image may lose, by what the distance has gained since the start."""
    if not 0 < score.distance < start.distance < math.inf:
        return PSNR_TOLERANCE
    return max(PSNR_TOLERANCE, PSNR_SHARE * 10 * math.log10(start.distance / score.distance))


def _fall(score: HeldOutScore, start: HeldOutScore) -> float:
    """Return the dB that the image has lost since the start; below 0: that it has gained."""
    now, before = score.terms.get("image"), start.terms.get("image")
    if not now or not before:
        return start.psnr - score.psnr
    return 10 * math.log10(now / before)


def _score_of(row: Mapping[str, Any]) -> HeldOutScore:
    """Return the score of a row of statistics."""
    terms = {
        k.removeprefix("held_"): v
        for k, v in row.items()
        if k.startswith("held_") and k not in ("held_distance", "held_psnr")
    }
    return HeldOutScore(distance=row["held_distance"], terms=terms, psnr=row["held_psnr"])
