"""The schedule of a polish: a constant rate while that helps and time lasts, then a fall to zero.

The length need not be known at the start (warm-up, stable, decay: Hu et al. 2024, MiniCPM, section
4): when the held-out distance stops falling, or the rest of the time is just enough for it, the
rate begins to fall. Rates and evaluations depend on the numbers of the steps alone, so a run of the
same total repeats the result, whatever the speed of the machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dsconvert.matching.protocols import Reason

WARMUP = 8
"""Steps in which the rate rises."""
_HELD, _OF = 3, 5
"""The rate falls after three fifths of the steps."""
EVERY, LONGER = 20, 4
"""Evaluations are 20 steps apart, later a quarter (1 / 4) of the steps before them."""
PATIENCE = 2
"""Evaluations in a row that lower the distance by less than one percent, until the rate falls."""
_ONE_PERCENT = 0.99
_FEW = 3
"""Steps after which their mean duration is known."""
_EVALUATIONS = 4
"""The first and the last evaluation take about as long as so many steps."""
_MARGIN = 1.1
"""The next steps may take so much longer than those before."""


def steps_before_fall(total: int) -> int:
    """Return the number of steps at the full rate in a run of ``total`` steps."""
    return -(-_HELD * total // _OF)


def total_after(held: int) -> int:
    """Return the length of the run whose rate begins to fall after ``held`` steps."""
    return _OF * held // _HELD


class PolishSchedule:
    """Decides the length of a polish on the way.

    Args:
        limit: seconds that it may take, set-up included; None: no limit.
        steps: its length; None: it is decided on the way.
        step_seconds: estimate of the duration of a step, until there are measurements.
    """

    def __init__(
        self, *, limit: float | None, steps: int | None = None, step_seconds: float = 0.0
    ) -> None:
        self._limit, self.total = limit, steps
        self._reason: Reason = "steps"
        self._estimate = step_seconds
        self._ready, self._closing = 0.0, 0.0
        self._next = EVERY
        self._lowest, self._stale = math.inf, 0

    def expect(self, step_seconds: float) -> None:
        """Set the estimate of the duration of a step."""
        self._estimate = step_seconds

    def start(self, steps: int, seconds: float) -> None:  # noqa: ARG002 - of the protocol
        """See :class:`~dsconvert.matching.protocols.Schedule`."""
        self._ready = seconds

    def alone(self, steps: int, seconds: float) -> bool:  # noqa: ARG002
        """No step trains blocks by themselves."""
        return False

    def rate(self, steps: int, seconds: float = 0.0) -> float:  # noqa: ARG002
        """Return the factor on the learning rate, which depends on the step's number alone."""
        rise = min(1.0, (steps + 1) / WARMUP)
        if self.total is None:
            return rise
        held = steps_before_fall(self.total)
        return rise * min(1.0, (self.total - steps) / max(1, self.total - held))

    def end(self, steps: int, seconds: float, stale: int = 0) -> Reason | None:  # noqa: ARG002
        """Return the reason if the run is over: that of the fall, or that the time is up."""
        if self.total is None:
            if self._stale >= PATIENCE:
                self._fall(steps, "patience")
            elif self._limit is not None and self._needed(steps, seconds) > self._limit - seconds:
                self._fall(steps, "minutes")
        if self.total is not None and steps >= self.total:
            return self._reason
        return "minutes" if self._limit is not None and seconds >= self._limit else None

    def _fall(self, steps: int, reason: Reason) -> None:
        self.total, self._reason = total_after(steps), reason

    def _needed(self, steps: int, seconds: float) -> float:
        """Return the seconds that the rest takes if the rate falls after one more step."""
        pace = (seconds - self._ready) / steps if steps >= _FEW else self._estimate
        return (total_after(steps + 1) - steps) * pace * _MARGIN + self._closing

    def reach(self, seconds: float) -> int:
        """Return about how many steps the time left allows, before the first evaluation."""
        if self._limit is None:
            return self.total or 0
        left = (self._limit - seconds) / max(self._estimate * _MARGIN, 1e-9)
        return max(0, int(left - _EVALUATIONS))

    def evaluation_due(self, steps: int, seconds: float) -> bool:  # noqa: ARG002
        """See :class:`~dsconvert.matching.protocols.Schedule`."""
        return steps >= self._next

    def evaluated(
        self,
        steps: int,
        seconds: float,  # noqa: ARG002 - of the protocol
        *,
        took: float,
        distance: float,
    ) -> None:
        """See :class:`~dsconvert.matching.protocols.Schedule`."""
        self._closing = took
        if steps:
            # Not the fit itself: at the full rate the distance of a good fit rises at first.
            self._stale = 0 if distance < _ONE_PERCENT * self._lowest else self._stale + 1
            self._lowest = min(self._lowest, distance)
        while self._next <= steps:
            self._next += max(EVERY, self._next // LONGER)

    def position(self, steps: int, seconds: float) -> tuple[str, int, int]:
        """See :class:`~dsconvert.matching.protocols.Schedule`."""
        if self._limit is None:
            return "polish, steps", steps, self.total or steps + 1
        whole = max(1, round(self._limit))
        return "polish, seconds", min(round(seconds), whole), whole

    def detail(self, steps: int, facts: tuple[str, ...]) -> str:
        """See :class:`~dsconvert.matching.protocols.Schedule`."""
        of = "" if self.total is None else f" of {self.total}"
        return ", ".join((f"step {steps}{of}", *facts))

    def state(self) -> dict[str, Any]:
        """Return the state; a polish writes no checkpoints."""
        return {"total": self.total, "next": self._next}

    def restore(self, data: Mapping[str, Any], steps: int, seconds: float) -> None:  # noqa: ARG002
        """Load the state of :meth:`state`."""
        self.total, self._next = data["total"], data["next"]
