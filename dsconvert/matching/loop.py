"""The loop that trains a student on its teacher: steps, evaluations, and the end of the run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dsconvert.config.distill import DistillConfig
from dsconvert.errors import TrainingError, UsageError
from dsconvert.matching.batches import TRAINING, TeacherBatches
from dsconvert.matching.best import BestStudent
from dsconvert.matching.evaluator import HeldOutScore, evaluate_student
from dsconvert.matching.loss import Scales, weighted_loss
from dsconvert.matching.optim import Optimiser
from dsconvert.matching.protocols import Adversary, Reason, Record, Schedule
from dsconvert.matching.schedule import DistillSchedule
from dsconvert.matching.statistics import EVERY, LossStatistics
from dsconvert.model.copying import copy_tensors, tensors_by_name
from dsconvert.model.gradients import differentiating
from dsconvert.util.interrupts import Interrupts
from dsconvert.util.progress import Progress

_RESOLVE = 10
"""Steps between two solutions of the read-outs."""
_SHORT = 2.0
"""Seconds of a trial step below which it is repeated: the first one also allocates memory."""


@dataclass(kw_only=True)
class LoopResult:
    """The result of a loop, which has trained the student in place.

    The student is that of the best evaluation, made after ``best_step`` steps; ``after`` is its
    score, and ``end`` the score of the last evaluation.
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
    """Trains once.

    Args:
        batches: of the run, with teacher and student.
        config: of the run.
        began: time of :func:`clock` at which the run's minutes begin.
        schedule: of the run; None: that of a distillation.
        critic: the adversarial term; None: there is none.
        record: of the run; None: nothing is written.
        facts: for the record.
        progress: called after each step.
    """

    def __init__(
        self,
        batches: TeacherBatches,
        config: DistillConfig,
        *,
        began: float,
        schedule: Schedule | None = None,
        critic: Adversary | None = None,
        record: Record | None = None,
        facts: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._clock, self._began = clock(config), began
        self.batches, self.objective, self.config = batches, batches.objective, config
        self.record, self.critic = record, critic
        self.student, self.device = batches.objective.student, batches.device
        self.schedule = DistillSchedule(config) if schedule is None else schedule
        self.statistics = LossStatistics(
            config.batch, self.device, self.schedule, progress=progress
        )
        self.steps, self._seconds_before = 0, 0.0
        muon = config.optimiser == "muon"
        self.optimiser = Optimiser(self.student, betas=config.betas, muon=muon)
        self._rate, self._alone = 0.0, False
        self.best = BestStudent(config)
        saved = None if record is None else record.saved
        if saved is None:
            self.scales = batches.scales()
        else:
            self._restore(saved)
        if record is not None:
            self.statistics.writer = record.begin(
                {
                    "blocks": list(batches.objective.blocks),
                    "torch": torch.__version__,
                    "threads": torch.get_num_threads(),
                    "device": str(self.device),
                    **(facts or {}),
                },
                images=self.images,
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
        """Train until the schedule ends the run.

        Raises:
            KeyboardInterrupt: the user stopped it. From the first step on, a checkpoint was
                written; before, there is nothing to keep.
            TrainingError: the loss is no longer finite.
        """
        try:
            self._train_mode()
            if self.best.start is None:
                self.evaluate()
            with Interrupts() as interrupts:
                reason = self._train(interrupts)
                if self.best.evaluated_at != self.steps:
                    self.evaluate()
                self._save()
        finally:
            self.statistics.close()
        return self.result(reason)

    def result(self, reason: Reason) -> LoopResult:
        """Load the best student, and return the result of a run that ended by ``reason``.

        At least one evaluation has been made.
        """
        best = self.best.finished()
        copy_tensors(self.best.state, self.student)
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
        self.schedule.start(self.steps, saved)
        while (reason := self._end()) is None:
            # An interrupted run was saved before the evaluation of its last step, which comes now.
            if self._evaluation_due():
                self.evaluate()
            if self._end() is not None:
                continue
            self._step()
            best = self.best.score
            self.statistics.report(
                self.steps, self.seconds, held_out=None if best is None else best.distance
            )
            if self.steps % EVERY == 0:
                self._line(stage="blocks" if self._alone else "whole")
            if interrupts.caught:
                self._save()
                raise KeyboardInterrupt
            if self.seconds - saved > 60 * self.config.checkpoint_minutes:
                self._save()
                saved = self.seconds
        return reason

    @differentiating()
    def _step(self) -> None:
        seconds = self.seconds
        blockwise = self._alone = self.schedule.alone(self.steps, seconds)
        self._rate = self.config.lr * self.schedule.rate(self.steps, seconds)
        target = self.batches.training(self.steps, maps=not blockwise)
        made = self.objective.run_student(target, blockwise=blockwise)
        terms = self.objective.terms(target, made, self.scales)
        if blockwise:
            terms = {"blocks": terms["blocks"]}
        loss = weighted_loss(terms, self.config)
        values = {n: float(v.detach()) for n, v in terms.items()}
        if self.critic is not None and not blockwise:
            adversarial = self.critic.generator_loss(made.image, target)
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
            values["critic"] = self.critic.step(made.image.detach(), target)
        if not blockwise:
            self.objective.follow(target, made.blocks)
        self.steps += 1
        if self.steps % _RESOLVE == 0:
            self.objective.solve_readouts()
        self.statistics.count(values)

    @differentiating()
    def trial_step(self) -> float:
        """Return the mean seconds of a step, by the configured clock; nothing is learnt."""
        took = math.inf
        for _ in range(2):
            began = self._clock()
            self._train_mode()
            target = self.batches.target(TRAINING)
            new = self._clock() - began
            terms = self.objective.terms(target, self.objective.run_student(target), self.scales)
            weighted_loss(terms, self.config).backward()
            self.optimiser.zero_grad()
            once = self._clock() - began
            took = min(took, once - (new / 2 if self.config.reuse else 0))
            if once > _SHORT:
                break
        return took

    def evaluate(self) -> None:
        """Measure the student on the held-out latents; it becomes the best one if it is better."""
        began = self.seconds
        found = evaluate_student(self.batches, self.scales)
        score = found.score
        self._train_mode()
        now = self.seconds
        self.schedule.evaluated(self.steps, now, took=now - began, distance=score.distance)
        self.best.add(score, self.student, step=self.steps, counts=not self._alone)
        terms = {f"held_{n}": v for n, v in score.terms.items()}
        self._line(held_distance=score.distance, held_psnr=score.psnr, **terms)
        if self.record is not None:
            self.record.show(self.images, found)

    def _train_mode(self) -> None:
        self.student.train(self.config.statistics == "batch")

    def _line(self, **values: Any) -> None:
        self.statistics.line(steps=self.steps, seconds=self.seconds, rate=self._rate, **values)

    def _end(self) -> Reason | None:
        return self.schedule.end(self.steps, self.seconds, self.best.stale)

    def _evaluation_due(self) -> bool:
        new = self.best.evaluated_at != self.steps
        return new and self.schedule.evaluation_due(self.steps, self.seconds)

    def _save(self) -> None:
        if self.record is None:
            return
        state: dict[str, Any] = {
            "steps": self.steps,
            "seconds": self.seconds,
            "student": tensors_by_name(self.student),
            "optimiser": self.optimiser.state(),
            "critic": None if self.critic is None else self.critic.state(),
            "scales": self.scales.state(),
            "readouts": self.objective.readouts_state(),
            **self.best.checkpoint(),
            **self.schedule.state(),
            "rows": self.statistics.rows,
        }
        self.record.save(self.images, state)

    def _restore(self, data: dict[str, Any]) -> None:
        try:
            copy_tensors(data["student"], self.student)
            self.optimiser.restore(data["optimiser"])
        except (RuntimeError, ValueError) as error:
            raise UsageError(
                f"the checkpoint to resume from is of another student ({str(error)[:200]})."
            ) from error
        if self.critic is not None:
            self.critic.restore(data["critic"])
        self.steps, self._seconds_before = data["steps"], data["seconds"]
        self._began = self._clock()
        self.batches.objective.restore_readouts(data.get("readouts", {}))
        self.scales = Scales(**data["scales"]).to(self.device)
        self.best.restore(data)
        self.statistics.rows = data["rows"]
        self.schedule.restore(data, self.steps, self.seconds)
        self._alone = data.get("alone", False)
