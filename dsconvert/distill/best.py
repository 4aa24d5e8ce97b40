"""The best student of a run: which evaluation counts as better, and the weights it belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dsconvert.distill.config import DistillConfig
from dsconvert.distill.judge import Held

PSNR_TOLERANCE = 0.1
"""dB below the start that the image may lose while the distance falls."""
_ONE_PERCENT = 0.99


class Best:
    """Keeps the student of the best evaluation so far; the start is the first of them.

    An evaluation is better where its held-out distance is the lowest so far and (if the image has
    a weight in the loss) its PSNR is not more than :data:`PSNR_TOLERANCE` below the start's. What
    is held out is the same in each evaluation, so the comparison has no sampling noise.

    Args:
        config: of the run.
    """

    def __init__(self, config: DistillConfig) -> None:
        self._config = config
        self.start: Held | None = None
        self.held: Held | None = None
        self.last: Held | None = None
        self.step, self.judged = 0, -1
        """Steps made when the best and the newest evaluation took place."""
        self.lowest = math.inf
        """The lowest distance of any evaluation, whatever its PSNR: what patience looks at."""
        self.stale = 0
        """Evaluations in a row in which that fell by less than one percent."""
        self.state: dict[str, Tensor] = {}

    def add(self, held: Held, student: nn.Module, *, step: int, counts: bool) -> None:
        """Take an evaluation into account.

        Args:
            held: what was measured.
            student: what it was measured on; copied where it is better.
            step: how many steps it has made.
            counts: whether patience counts it.
        """
        self.last, self.judged = held, step
        gained = held.distance < _ONE_PERCENT * self.lowest
        self.stale = 0 if gained else self.stale + counts
        if held.distance < self.lowest:
            self.lowest = held.distance
        if self.start is None or self.held is None:
            self.start = held
        elif not self._better(held, self.start, self.held):
            return
        self.held, self.step = held, step
        self.state = {k: v.detach().clone() for k, v in student.state_dict().items()}

    def _better(self, held: Held, start: Held, best: Held) -> bool:
        # A start that is not finite is beaten by anything that is.
        least = best.distance if math.isfinite(best.distance) else math.inf
        dark = self._config.image > 0 and held.psnr < start.psnr - PSNR_TOLERANCE
        return held.distance < least and not dark

    def checkpoint(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        if self.start is None or self.held is None or self.last is None:
            raise RuntimeError("a run has no best student before its first evaluation.")
        return {
            "best": self.held.distance,
            "best_state": self.state,
            "best_step": self.step,
            "before": vars(self.start),
            "after": vars(self.held),
            "last": vars(self.last),
            "judged": self.judged,
            "lowest": self.lowest,
            "stale": self.stale,
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Back from :meth:`checkpoint`.

        What a checkpoint of an older version lacks is taken from its rows of statistics.
        """
        self.state, self.stale = data["best_state"], data["stale"]
        self.start, self.held = Held(**data["before"]), Held(**data["after"])
        self.lowest = data.get("lowest", data["best"])
        rows: Sequence[Mapping[str, Any]] = [r for r in data["rows"] if "held_distance" in r]
        self.last = Held(**data["last"]) if "last" in data else _held(rows[-1])
        self.judged = data["judged"] if "judged" in data else rows[-1]["step"]
        if "best_step" in data:
            self.step = data["best_step"]
        else:
            same = [r["step"] for r in rows if r["held_distance"] == data["best"]]
            self.step = same[0] if same else self.judged


def _held(row: Mapping[str, Any]) -> Held:
    terms = {
        k.removeprefix("held_"): v
        for k, v in row.items()
        if k.startswith("held_") and k not in ("held_distance", "held_psnr")
    }
    return Held(distance=row["held_distance"], terms=terms, psnr=row["held_psnr"])
