"""The loop of a distillation: steps, the held-out judge, checkpoints, and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from dsconvert.data.pictures import save_picture, side_by_side
from dsconvert.distill.bar import detail, position
from dsconvert.distill.best import Best
from dsconvert.distill.config import DistillConfig
from dsconvert.distill.critic import Critic
from dsconvert.distill.folder import Folder
from dsconvert.distill.judge import SCALES, TRAINING, Held, Lessons
from dsconvert.distill.loss import Scales
from dsconvert.distill.optim import Optimiser
from dsconvert.errors import TrainingError, UsageError
from dsconvert.projected.lite0 import Weights
from dsconvert.runs.stats import StatsWriter, peak_memory
from dsconvert.util.interrupts import Interrupts

Progress = Callable[[str, int, int, str], None]
"""``progress(stage, done, total, detail)``: steps or seconds until the end, and how it goes."""
Reason = Literal["steps", "minutes", "patience"]
_ROWS = 20
"""Steps between two lines of statistics."""


@dataclass(kw_only=True)
class Result:
    """What a finished loop hands back; the student itself was trained in place.

    It is the student of the best evaluation, made after ``best_step`` steps: ``after`` belongs to
    it, and ``end`` to the student as the last step left it.
    """

    steps: int
    seconds: float
    reason: Reason
    before: Held
    after: Held
    end: Held
    best_step: int
    rows: list[dict[str, Any]] = field(default_factory=list)


def clock(config: DistillConfig) -> Callable[[], float]:
    """The clock that the run's minutes are of."""
    return time.perf_counter if config.clock == "wall" else time.process_time


class Loop:
    """See :func:`dsconvert.distill.api.distill`, which makes one and runs it once."""

    def __init__(
        self,
        lessons: Lessons,
        config: DistillConfig,
        *,
        began: float,
        folder: Folder | None,
        settings: dict[str, Any],
        progress: Progress | None,
        weights: Weights = "auto",
    ) -> None:
        self._clock, self._began = clock(config), began
        self.lessons, self.objective, self.config = lessons, lessons.objective, config
        self.folder, self._tell = folder, progress
        self.student, self.device = lessons.objective.student, lessons.device
        self.steps, self._before_this = 0, 0.0
        self.rows: list[dict[str, Any]] = []
        self._sums: dict[str, float] = {}
        self._count = 0
        self.student.requires_grad_(True)
        self.optimiser = Optimiser(
            self.student, betas=config.betas, muon=config.optimiser == "muon"
        )
        self._rate, self._alone = 0.0, False
        self.critic: Critic | None = None
        if config.adversarial:
            self.critic = Critic(
                lessons.target(SCALES), lr=config.lr_discriminator, weights=weights
            )
        self.best = Best(config)
        self.evaluated = 0
        self.ready: float | None = None
        """Seconds before the first step."""
        found = None if folder is None else folder.found
        if found is None:
            self.scales = lessons.scales()
        else:
            self._restore(found)
        self._writer = None
        if folder is not None:
            folder.make()
            folder.describe(
                {
                    "blocks": list(lessons.objective.blocks),
                    "torch": torch.__version__,
                    "threads": torch.get_num_threads(),
                    "device": str(self.device),
                    **settings,
                }
            )
            self._writer = StatsWriter(
                folder.path, resume_images=None if found is None else self.images
            )

    def _learning(self) -> None:
        """Put the student in the mode it learns in."""
        self.student.train(self.config.statistics == "batch")

    # --- the run ---

    @property
    def images(self) -> int:
        """Images that the student has made in training."""
        return self.steps * self.config.batch

    @property
    def seconds(self) -> float:
        """Time that the run has taken, of the configured clock, earlier parts included."""
        return self._before_this + self._clock() - self._began

    def run(self) -> Result:
        """Train until one of the ends is reached.

        Raises:
            KeyboardInterrupt: the user stopped it. From the first step on, a checkpoint was
                written; before, there is nothing to keep.
            TrainingError: the loss is no longer finite.
        """
        try:
            self._learning()
            if self.best.start is None:
                self._evaluate(0.0)
            with Interrupts() as interrupts:
                reason = self._train(interrupts)
                if self.best.judged != self.steps:
                    self._evaluate(1.0)
                self._save()
        finally:
            if self._writer is not None:
                self._writer.close()
        best = self.best
        assert best.start is not None
        assert best.held is not None
        assert best.last is not None
        self.student.load_state_dict(best.state)
        self.student.eval()
        return Result(
            steps=self.steps,
            seconds=self.seconds,
            reason=reason,
            before=best.start,
            after=best.held,
            end=best.last,
            best_step=best.step,
            rows=self.rows,
        )

    def _train(self, interrupts: Interrupts) -> Reason:
        saved = self.seconds
        if self.ready is None:
            self.ready = self.seconds
        while (reason := self._end()) is None:
            # Also of the step before an interruption, which was saved without its evaluation.
            if self._due():
                self._evaluate(self._progress())
            if self._end() is not None:
                continue
            progress = self._progress()
            self._step(progress)
            self._report()
            if interrupts.caught:
                self._save()
                raise KeyboardInterrupt
            if self.seconds - saved > 60 * self.config.checkpoint_minutes:
                self._save()
                saved = self.seconds
        return reason

    def _progress(self) -> float:
        return self.config.progress(self.steps, self.seconds)

    @property
    def _ready(self) -> float:
        """The progress at the first step."""
        return self.config.progress(0, self.ready or 0.0)

    def _end(self) -> Reason | None:
        c = self.config
        if c.steps is not None and self.steps >= c.steps:
            return "steps"
        if c.minutes is not None and self.seconds >= 60 * c.minutes:
            return "minutes"
        return "patience" if c.patience and self.best.stale >= c.patience else None

    def _due(self) -> bool:
        c = self.config
        if self.best.judged == self.steps:
            return False
        if c.steps is None and c.minutes is None:
            return self.steps % 100 == 0
        share = self._progress()
        return share < 1 and share * c.evaluations >= self.evaluated

    def _step(self, progress: float) -> None:
        alone = self.config.alone(self.steps, progress, began=self._ready)
        self._alone = alone
        self._rate = self.config.lr * self.config.rate(self.steps, progress, began=self._ready)
        target = self.lessons.target(TRAINING + self.steps, maps=not alone)
        image, blocks = self.objective.learn(target, alone=alone)
        terms = self.objective.terms(target, image, blocks, self.scales)
        if alone:
            terms = {"blocks": terms["blocks"]}
        loss = self.lessons.weighted(terms)
        values = {n: float(v.detach()) for n, v in terms.items()}
        if self.critic is not None and not alone:
            judged = self.critic.judge(image, target)
            loss = loss + self.config.adversarial * judged
            values["adversarial"] = float(judged.detach())
        values["loss"] = float(loss.detach())
        if not math.isfinite(values["loss"]):
            raise TrainingError(
                f"the loss is {values['loss']} at step {self.steps}: nothing more can be learnt. "
                "Start again with a lower rate (--lr), in another folder (--run)."
            )
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step(self._rate)
        if self.critic is not None and not alone:
            values["critic"] = self.critic.step(image.detach(), target)
        self.steps += 1
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def _report(self) -> None:
        if self._tell is not None:
            best = self.best.held
            loss = self._sums["loss"] / self._count if self._count else None
            held = None if best is None else best.distance
            self._tell(
                *position(self.config, self.steps, self.seconds),
                detail(self.config, self.steps, loss=loss, held=held),
            )
        if self.steps % _ROWS == 0:
            self._row(stage="blocks" if self._alone else "whole")

    def _row(self, **values: Any) -> None:
        means = {n: v / max(self._count, 1) for n, v in self._sums.items()}
        self._sums, self._count = {}, 0
        row = {"step": self.steps, "seconds": self.seconds, "memory": peak_memory(self.device),
               "rate": self._rate,
               **means, **values}  # fmt: skip
        if self._writer is not None:
            row = self._writer.write(self.images, **row)
        self.rows.append({"images": self.images, **row})

    def _evaluate(self, progress: float) -> None:
        held, wanted, made = self.lessons.judge(self.scales)
        self._learning()
        self.evaluated = math.floor(progress * self.config.evaluations) + 1
        self.best.add(held, self.student, step=self.steps, counts=not self._alone)
        terms = {f"held_{n}": v for n, v in held.terms.items()}
        self._row(held_distance=held.distance, held_psnr=held.psnr, **terms)
        if self.folder is not None:
            sheet = side_by_side({"teacher": wanted, "student": made}, with_psnr=True)
            name = f"{self.images:010d}.png"
            save_picture(sheet, self.folder.path / "grids" / name, overwrite=True)

    # --- what a checkpoint holds ---

    def _save(self) -> None:
        if self.folder is None:
            return
        state: dict[str, Any] = {
            "steps": self.steps,
            "seconds": self.seconds,
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state(),
            "critic": None if self.critic is None else self.critic.state(),
            "scales": self.scales.state(),
            "ready": self.ready,
            "alone": self._alone,
            **self.best.checkpoint(),
            "evaluated": self.evaluated,
            "rows": self.rows,
        }
        self.folder.save(self.images, state)

    def _restore(self, data: dict[str, Any]) -> None:
        try:
            self.student.load_state_dict(data["student"])
            self.optimiser.restore(data["optimiser"])
        except (RuntimeError, ValueError) as error:
            raise UsageError(
                f"the checkpoint to resume from is of another student ({str(error)[:200]})."
            ) from error
        if self.critic is not None:
            self.critic.restore(data["critic"])
        self.scales = Scales(**data["scales"])
        self.steps, self._before_this = data["steps"], data["seconds"]
        self._began = self._clock()
        self.best.restore(data)
        self.rows = data["rows"]
        self.ready, self._alone = data.get("ready", 0.0), data.get("alone", False)
        # A run that is made longer has fewer of its evaluations behind it than when it was saved.
        passed = math.floor(self._progress() * self.config.evaluations) + 1
        self.evaluated = min(data["evaluated"], passed)
