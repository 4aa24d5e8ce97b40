"""The schedule of a distillation: rates, evaluations and ends by the share of the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dsconvert.config.distill import DistillConfig
from dsconvert.matching.protocols import Reason

_EVERY = 100
"""Steps between two evaluations of a run of unknown length."""


class DistillSchedule:
    """The schedule of a distillation, by the share of the run that is done.

    Args:
        config: of the run.
    """

    def __init__(self, config: DistillConfig) -> None:
        self._config = config
        self._evaluated = 0
        self._ready: float | None = None
        """Seconds before the first step; None: it has not been made."""
        self._alone = False

    def _progress(self, steps: int, seconds: float) -> float:
        return self._config.progress(steps, seconds)

    def start(self, steps: int, seconds: float) -> None:  # noqa: ARG002 - of the protocol
        """See :class:`Schedule`."""
        if self._ready is None:
            self._ready = seconds

    def alone(self, steps: int, seconds: float) -> bool:
        """See :class:`Schedule`."""
        began = self._config.progress(0, self._ready or 0.0)
        self._alone = self._config.alone(steps, self._progress(steps, seconds), began=began)
        return self._alone

    def rate(self, steps: int, seconds: float) -> float:
        """See :class:`Schedule`."""
        began = self._config.progress(0, self._ready or 0.0)
        return self._config.rate(steps, self._progress(steps, seconds), began=began)

    def end(self, steps: int, seconds: float, stale: int) -> Reason | None:
        """See :class:`Schedule`."""
        c = self._config
        if c.steps is not None and steps >= c.steps:
            return "steps"
        if c.minutes is not None and seconds >= 60 * c.minutes:
            return "minutes"
        return "patience" if c.patience and stale >= c.patience else None

    def evaluation_due(self, steps: int, seconds: float) -> bool:
        """See :class:`Schedule`."""
        c = self._config
        if c.steps is None and c.minutes is None:
            return steps % _EVERY == 0
        share = self._progress(steps, seconds)
        return share < 1 and share * c.evaluations >= self._evaluated

    def evaluated(
        self,
        steps: int,
        seconds: float,
        *,
        took: float,  # noqa: ARG002 - of the protocol
        distance: float,  # noqa: ARG002
    ) -> None:
        """See :class:`Schedule`."""
        # The set-up takes a part of the minutes, but the start is the first evaluation.
        share = self._progress(steps, seconds) if steps else 0.0
        self._evaluated = math.floor(share * self._config.evaluations) + 1

    def position(self, steps: int, seconds: float) -> tuple[str, int, int]:
        """See :class:`Schedule`: in steps, in seconds, or in percent if both end the run.

        If only patience ends a run, its total is unknown and stays one step ahead.
        """
        c = self._config
        if c.steps is not None and c.minutes is not None:
            return "distil, percent", int(100 * c.progress(steps, seconds)), 100
        if c.steps is not None:
            return "distil, steps", steps, c.steps
        if c.minutes is not None:
            total = max(1, round(60 * c.minutes))
            return "distil, seconds", min(round(seconds), total), total
        return "distil, steps", steps, steps + 1

    def detail(self, steps: int, facts: tuple[str, ...]) -> str:
        """See :class:`Schedule`."""
        c = self._config
        counted = c.steps is not None and c.minutes is None  # the bar shows the step
        parts = facts if counted else (f"step {steps}", *facts)
        if c.steps is None and c.minutes is None:
            parts += (f"until {c.patience} evaluations bring nothing",)
        return ", ".join(parts)

    def state(self) -> dict[str, Any]:
        """See :class:`Schedule`."""
        return {"ready": self._ready, "alone": self._alone, "evaluated": self._evaluated}

    def restore(self, data: Mapping[str, Any], steps: int, seconds: float) -> None:
        """See :class:`Schedule`."""
        self._ready, self._alone = data.get("ready", 0.0), data.get("alone", False)
        # If the run is longer now, a smaller share of its evaluations has been made.
        passed = math.floor(self._progress(steps, seconds) * self._config.evaluations) + 1
        self._evaluated = min(data["evaluated"], passed)
