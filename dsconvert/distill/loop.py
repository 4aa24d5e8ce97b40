"""The loop of a distillation: steps, evaluations, checkpoints, and the conditions that end it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dsconvert.config.distill import DistillConfig
from dsconvert.data.pictures import save_picture, side_by_side
from dsconvert.distill.batches import SCALES, TRAINING, TeacherBatches
from dsconvert.distill.best import BestStudent
from dsconvert.distill.critic import Critic
from dsconvert.distill.evaluator import HeldOutScore, evaluate_student
from dsconvert.distill.loss import Scales, weighted_loss
from dsconvert.distill.optim import Optimiser
from dsconvert.distill.run import DistillationRun
from dsconvert.distill.statistics import EVERY, DistillStatistics
from dsconvert.errors import TrainingError, UsageError
from dsconvert.projected.lite0 import Weights
from dsconvert.runs.stats import StatsWriter
from dsconvert.util.interrupts import Interrupts
from dsconvert.util.progress import Progress

Reason = Literal["steps", "minutes", "patience"]


@dataclass(kw_only=True)
class LoopResult:
    """The result of a loop, which has trained the student in place.

    The student is that of the best evaluation, made after ``best_step`` steps; ``after`` is its
    score, and ``end`` the score after the last step.
    """

    steps: int
    seconds: float
    reason: Reason
    before: HeldOutScore
    after: HeldOutScore
    end: HeldOutScore
    best_step: int
    rows: list[dict[str, Any]] = field(default_factory=list)


def clock(config: DistillConfig) -> Callable[[], float]:
    """Return the clock that measures the run's minutes, in seconds."""
    return time.perf_counter if config.clock == "wall" else time.process_time


class Loop:
    """Runs once; :func:`dsconvert.distill.api.distill` makes it.

    Args:
        batches: of the run, with teacher and student.
        config: of the run.
        began: time of :func:`clock` at which the run's minutes begin.
        run: the run's folder; None: nothing is written.
        facts: to store in its ``settings.json``.
        progress: called after each step.
        weights: of the backbone of the adversarial term.
    """

    def __init__(
        self,
        batches: TeacherBatches,
        config: DistillConfig,
        *,
        began: float,
        run: DistillationRun | None,
        facts: dict[str, Any],
        progress: Progress | None,
        weights: Weights = "auto",
    ) -> None:
        self._clock, self._began = clock(config), began
        self.batches, self.objective, self.config = batches, batches.objective, config
        self.files = run
        self.student, self.device = batches.objective.student, batches.device
        self.statistics = DistillStatistics(config, self.device, progress=progress)
        self.steps, self._seconds_before = 0, 0.0
        self.student.requires_grad_(True)
        self.optimiser = Optimiser(
            self.student, betas=config.betas, muon=config.optimiser == "muon"
        )
        self._rate, self._blockwise = 0.0, False
        self.critic: Critic | None = None
        if config.adversarial:
            self.critic = Critic(
                batches.target(SCALES), lr=config.lr_discriminator, weights=weights
            )
        self.best = BestStudent(config)
        self.evaluated = 0
        self.ready: float | None = None
        """Seconds before the first step; None: it has not been made."""
        saved = None if run is None else run.saved
        if saved is None:
            self.scales = batches.scales()
        else:
            self._restore(saved)
        if run is not None:
            run.begin(
                {
                    "blocks": list(batches.objective.blocks),
                    "torch": torch.__version__,
                    "threads": torch.get_num_threads(),
                    "device": str(self.device),
                    **facts,
                }
            )
            self.statistics.writer = StatsWriter(
                run.folder.path, resume_images=None if saved is None else self.images
            )

    @property
    def images(self) -> int:
        """Images that the student has made in training."""
        return self.steps * self.config.batch

    @property
    def seconds(self) -> float:
        """Duration of the run by the configured clock, earlier calls included."""
        return self._seconds_before + self._clock() - self._began

    def run(self) -> LoopResult:
        """Train until one of the end conditions holds.

        Raises:
            KeyboardInterrupt: the user stopped it. From the first step on, a checkpoint was
                written; before, there is nothing to keep.
            TrainingError: the loss is no longer finite.
        """
        try:
            self._train_mode()
            if self.best.start is None:
                self._evaluate(0.0)
            with Interrupts() as interrupts:
                reason = self._train(interrupts)
                if self.best.evaluated_at != self.steps:
                    self._evaluate(1.0)
                self._save()
        finally:
            self.statistics.close()
        best = self.best.finished()
        self.student.load_state_dict(self.best.state)
        self.student.eval()
        return LoopResult(
            steps=self.steps,
            seconds=self.seconds,
            reason=reason,
            before=best.start,
            after=best.best,
            end=best.last,
            best_step=self.best.step,
            rows=self.statistics.rows,
        )

    def _train(self, interrupts: Interrupts) -> Reason:
        saved = self.seconds
        if self.ready is None:
            self.ready = self.seconds
        while (reason := self._end()) is None:
            # An interrupted run was saved before the evaluation of its last step, which comes now.
            if self._evaluation_due():
                self._evaluate(self._progress())
            if self._end() is not None:
                continue
            self._step(self._progress())
            best = self.best.score
            self.statistics.report(
                self.steps, self.seconds, held_out=None if best is None else best.distance
            )
            if self.steps % EVERY == 0:
                self._line(stage="blocks" if self._blockwise else "whole")
            if interrupts.caught:
                self._save()
                raise KeyboardInterrupt
            if self.seconds - saved > 60 * self.config.checkpoint_minutes:
                self._save()
                saved = self.seconds
        return reason

    def _step(self, progress: float) -> None:
        began = self.config.progress(0, self.ready or 0.0)
        blockwise = self.config.alone(self.steps, progress, began=began)
        self._blockwise = blockwise
        self._rate = self.config.lr * self.config.rate(self.steps, progress, began=began)
        target = self.batches.target(TRAINING + self.steps, maps=not blockwise)
        image, blocks = self.objective.run_student(target, blockwise=blockwise)
        terms: dict[str, Tensor] = self.objective.terms(target, image, blocks, self.scales)
        if blockwise:
            terms = {"blocks": terms["blocks"]}
        loss = weighted_loss(terms, self.config)
        values = {n: float(v.detach()) for n, v in terms.items()}
        if self.critic is not None and not blockwise:
            adversarial = self.critic.generator_loss(image, target)
            loss = loss + self.config.adversarial * adversarial
            values["adversarial"] = float(adversarial.detach())
        values["loss"] = float(loss.detach())
        if not math.isfinite(values["loss"]):
            raise TrainingError(
                f"the loss is {values['loss']} at step {self.steps}: nothing more can be learnt. "
                "Start again with a lower rate (--lr), in another folder (--run)."
            )
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step(self._rate)
        if self.critic is not None and not blockwise:
            values["critic"] = self.critic.step(image.detach(), target)
        self.steps += 1
        self.statistics.count(values)

    def _evaluate(self, progress: float) -> None:
        found = evaluate_student(self.batches, self.scales)
        score = found.score
        self._train_mode()
        self.evaluated = math.floor(progress * self.config.evaluations) + 1
        self.best.add(score, self.student, step=self.steps, counts=not self._blockwise)
        terms = {f"held_{n}": v for n, v in score.terms.items()}
        self._line(held_distance=score.distance, held_psnr=score.psnr, **terms)
        if self.files is not None:
            rows = {"teacher": found.teacher, "student": found.student}
            sheet = side_by_side(rows, with_psnr=True)
            save_picture(sheet, self.files.folder.grid(self.images), overwrite=True)

    def _train_mode(self) -> None:
        self.student.train(self.config.statistics == "batch")

    def _line(self, **values: Any) -> None:
        self.statistics.line(steps=self.steps, seconds=self.seconds, rate=self._rate, **values)

    # --- conditions ---

    def _progress(self) -> float:
        return self.config.progress(self.steps, self.seconds)

    def _end(self) -> Reason | None:
        """Return the condition that ends the run now, if any."""
        c = self.config
        if c.steps is not None and self.steps >= c.steps:
            return "steps"
        if c.minutes is not None and self.seconds >= 60 * c.minutes:
            return "minutes"
        return "patience" if c.patience and self.best.stale >= c.patience else None

    def _evaluation_due(self) -> bool:
        c = self.config
        if self.best.evaluated_at == self.steps:
            return False
        if c.steps is None and c.minutes is None:
            return self.steps % 100 == 0
        share = self._progress()
        return share < 1 and share * c.evaluations >= self.evaluated

    # --- checkpoints ---

    def _save(self) -> None:
        if self.files is None:
            return
        state: dict[str, Any] = {
            "steps": self.steps,
            "seconds": self.seconds,
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state(),
            "critic": None if self.critic is None else self.critic.state(),
            "scales": self.scales.state(),
            "ready": self.ready,
            "alone": self._blockwise,
            **self.best.checkpoint(),
            "evaluated": self.evaluated,
            "rows": self.statistics.rows,
        }
        self.files.save(self.images, state)

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
        self.steps, self._seconds_before = data["steps"], data["seconds"]
        self._began = self._clock()
        self.best.restore(data)
        self.statistics.rows = data["rows"]
        self.ready, self._blockwise = data.get("ready", 0.0), data.get("alone", False)
        # If the run is longer now, a smaller share of its evaluations has been made.
        passed = math.floor(self._progress() * self.config.evaluations) + 1
        self.evaluated = min(data["evaluated"], passed)
