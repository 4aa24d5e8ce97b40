"""The loop of a distillation: steps, the held-out judge, checkpoints, and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dsconvert.errors import TrainingError, UsageError
from dsconvert.images import save_picture, side_by_side
from dsconvert.lite0 import Weights
from dsconvert.train.distill.config import DistillConfig
from dsconvert.train.distill.critic import Critic
from dsconvert.train.distill.folder import Folder
from dsconvert.train.distill.judge import SCALES, TRAINING, Held, Lessons
from dsconvert.train.distill.loss import Scales
from dsconvert.train.distill.optim import Optimiser
from dsconvert.train.interrupts import Interrupts
from dsconvert.train.stats import StatsWriter, peak_memory

Progress = Callable[[str, int, int, str], None]
"""``progress(stage, done, total, detail)``: thousandths of the run, and how it goes."""
Reason = Literal["steps", "minutes", "patience"]
_ROWS = 20
"""Steps between two lines of statistics."""
_ONE_PERCENT = 0.99


@dataclass(kw_only=True)
class Result:
    """What a finished loop hands back; the student itself was trained in place."""

    steps: int
    seconds: float
    reason: Reason
    before: Held
    after: Held
    rows: list[dict[str, Any]] = field(default_factory=list)


def clock(config: DistillConfig) -> Callable[[], float]:
    """The clock that the run's minutes are of."""
    return time.perf_counter if config.clock == "wall" else time.process_time


class Loop:
    """See :func:`dsconvert.train.distill.api.distill`, which makes one and runs it once."""

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
        self.folder, self._progress = folder, progress
        self.student, self.device = lessons.objective.student, lessons.device
        self.steps, self._before_this = 0, 0.0
        self.rows: list[dict[str, Any]] = []
        self._sums: dict[str, float] = {}
        self._count = 0
        self.student.requires_grad_(True)
        self.optimiser = Optimiser(
            self.student, betas=config.betas, muon=config.optimiser == "muon"
        )
        self._rate = 0.0
        self.critic: Critic | None = None
        if config.adversarial:
            self.critic = Critic(
                lessons.target(SCALES), lr=config.lr_discriminator, weights=weights
            )
        self.best = math.inf
        self.best_state: dict[str, Tensor] = {}
        self.before: Held | None = None
        self.after: Held | None = None
        self.stale, self.evaluated = 0, 0
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
        """Train until one of the ends is reached."""
        saved = self.seconds
        try:
            with Interrupts() as interrupts:
                self._learning()
                if self.before is None:
                    self._evaluate(0.0)
                while (reason := self._end()) is None:
                    progress = self.config.progress(self.steps, self.seconds)
                    self._step(progress)
                    self._report(progress)
                    if self._due():
                        self._evaluate(self.config.progress(self.steps, self.seconds))
                    if interrupts.caught:
                        self._save()
                        raise KeyboardInterrupt
                    if self.seconds - saved > 60 * self.config.checkpoint_minutes:
                        self._save()
                        saved = self.seconds
                self._evaluate(1.0)
                self._save()
        finally:
            if self._writer is not None:
                self._writer.close()
        assert self.before is not None
        assert self.after is not None
        self.student.load_state_dict(self.best_state)
        self.student.eval()
        return Result(
            steps=self.steps,
            seconds=self.seconds,
            reason=reason,
            before=self.before,
            after=self.after,
            rows=self.rows,
        )

    def _end(self) -> Reason | None:
        c = self.config
        if c.steps is not None and self.steps >= c.steps:
            return "steps"
        if c.minutes is not None and self.seconds >= 60 * c.minutes:
            return "minutes"
        return "patience" if c.patience and self.stale >= c.patience else None

    def _due(self) -> bool:
        c = self.config
        if c.steps is None and c.minutes is None:
            return self.steps % 100 == 0
        share = c.progress(self.steps, self.seconds)
        return share < 1 and share * c.evaluations >= self.evaluated

    def _step(self, progress: float) -> None:
        alone = progress < self.config.blockwise
        self._rate = self.config.lr * self.config.rate(self.steps, progress)
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
                "Lower the rate (--lr) and start again, or resume from an earlier checkpoint."
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

    def _report(self, progress: float) -> None:
        if self._progress is not None:
            detail = f"step {self.steps}"
            if self.after is not None:
                detail += f", held-out distance {self.after.distance:.4f}"
            self._progress("distil", round(1000 * progress), 1000, detail)
        if self.steps % _ROWS == 0:
            self._row(stage="blocks" if progress < self.config.blockwise else "whole")

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
        if self.before is None:
            self.before = self.after = held
        self.evaluated = math.floor(progress * self.config.evaluations) + 1
        self.stale = 0 if held.distance < _ONE_PERCENT * self.best else self.stale + 1
        if held.distance < self.best:
            self.best, self.after = held.distance, held
            state = self.student.state_dict()
            self.best_state = {k: v.detach().clone() for k, v in state.items()}
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
        assert self.before is not None
        assert self.after is not None
        state: dict[str, Any] = {
            "steps": self.steps,
            "seconds": self.seconds,
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state(),
            "critic": None if self.critic is None else self.critic.state(),
            "scales": self.scales.state(),
            "best": self.best,
            "best_state": self.best_state,
            "before": vars(self.before),
            "after": vars(self.after),
            "stale": self.stale,
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
        self.best, self.best_state = data["best"], data["best_state"]
        self.before, self.after = Held(**data["before"]), Held(**data["after"])
        self.stale, self.evaluated, self.rows = data["stale"], data["evaluated"], data["rows"]
