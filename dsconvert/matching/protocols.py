"""The parts that a loop is given: its schedule, its record on the disk, an adversarial term."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from torch import Tensor

from dsconvert.matching.evaluator import HeldOutEvaluation
from dsconvert.matching.loss import TeacherOutput

Reason = Literal["steps", "minutes", "patience", "interrupted", "diverged"]
"""The condition that ended a run; ``distill`` raises an error in the last two cases."""


class Schedule(Protocol):
    """The decisions of a run, from its steps, its seconds and its evaluations so far."""

    def start(self, steps: int, seconds: float) -> None:
        """Take the time of the first step of this call into account, which comes now."""
        ...

    def alone(self, steps: int, seconds: float) -> bool:
        """Return whether the next step trains each block by itself."""
        ...

    def rate(self, steps: int, seconds: float) -> float:
        """Return the factor on the learning rate of the next step, 0 to 1."""
        ...

    def end(self, steps: int, seconds: float, stale: int) -> Reason | None:
        """Return the condition that ends the run now, if any.

        Args:
            steps: made so far.
            seconds: of the run so far.
            stale: evaluations in a row that brought nothing.
        """
        ...

    def evaluation_due(self, steps: int, seconds: float) -> bool:
        """Return whether the student of ``steps`` steps is to be evaluated now."""
        ...

    def evaluated(self, steps: int, seconds: float, *, took: float, distance: float) -> None:
        """Take an evaluation into account: the seconds of it alone, and the held-out distance."""
        ...

    def position(self, steps: int, seconds: float) -> tuple[str, int, int]:
        """Return (stage, done, total), for :data:`dsconvert.util.progress.Progress`."""
        ...

    def detail(self, steps: int, facts: tuple[str, ...]) -> str:
        """Return the text beside the progress bar, with ``facts`` in it."""
        ...

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        ...

    def restore(self, data: Mapping[str, Any], steps: int, seconds: float) -> None:
        """Load the state of :meth:`state` of a run that has made ``steps`` steps."""
        ...


class RowWriter(Protocol):
    """Writes lines of statistics."""

    def write(self, images: int, **values: Any) -> dict[str, Any]:
        """Write one line; return it as it was written."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...


class Adversary(Protocol):
    """An adversarial term; see :class:`dsconvert.distill.critic.Critic`."""

    def generator_loss(self, image: Tensor, target: TeacherOutput) -> Tensor:
        """Return the generator's loss; gradients flow to ``image`` alone."""
        ...

    def step(self, image: Tensor, target: TeacherOutput) -> float:
        """Train the discriminator on one batch; return its loss."""
        ...

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load the state of :meth:`state`."""
        ...


class Record(Protocol):
    """Keeps a run on the disk; see :class:`dsconvert.distill.run.DistillationRun`."""

    @property
    def saved(self) -> dict[str, Any] | None:
        """The state that the run goes on from; None: it is new."""
        ...

    def begin(self, facts: Mapping[str, Any], *, images: int) -> RowWriter:
        """Write the settings with ``facts``; return the writer of lines after ``images``."""
        ...

    def show(self, images: int, found: HeldOutEvaluation) -> None:
        """Write the images of an evaluation."""
        ...

    def save(self, images: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint."""
        ...
