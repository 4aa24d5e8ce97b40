"""The last stage of a conversion: train the fitted model on the original's images, for minutes.

It is the loop of a distillation (:mod:`dsconvert.matching`) with a schedule of its own. It starts
from the fit, judges on held-out latents, and never returns a model that is worse than the start.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dsconvert.adapter import image_tensor
from dsconvert.config.distill import DistillConfig
from dsconvert.core.analysis import Analysis
from dsconvert.core.conversion import apply_to
from dsconvert.core.fast_teacher import fast_form
from dsconvert.core.held_out_psnr import picture_range
from dsconvert.core.polish_config import NEAR, NEAR_RATE, polish_config
from dsconvert.core.polish_options import PolishOptions, as_pictures, check_polishable
from dsconvert.core.polish_schedule import PolishSchedule
from dsconvert.data.spectrograms import is_sound
from dsconvert.errors import MissingExtraError, NoGradientsError, PolishError, TrainingError
from dsconvert.matching.batches import TeacherBatches
from dsconvert.matching.loop import Loop, LoopResult
from dsconvert.matching.setup import as_given, teacher_batches, working_copy
from dsconvert.model.inputs import Inputs, device_of, like, values_of
from dsconvert.model.pictures import FromUnit
from dsconvert.records import Conversion, Plan, Polish, PolishEnd, PolishForecast
from dsconvert.util.progress import Progress

USEFUL_STEPS = 200
"""A shorter polish leaves much of the possible gain."""
_EXACT = 1e-6
"""Below this distance nothing is left to improve."""
_ENDS: dict[str, PolishEnd] = {
    "patience": "settled",
    "steps": "steps",
    "minutes": "minutes",
    "interrupted": "interrupted",
    "diverged": "diverged",
}


def polish(
    analysis: Analysis,
    conversion: Conversion,
    options: PolishOptions,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Conversion:
    """Train the model of ``conversion`` on the original's images, and record that.

    Ctrl-C (and SIGTERM) ends the polish, not the call: the best model so far is returned, and the
    record says ``interrupted``. A second one interrupts the evaluation that follows.

    Args:
        analysis: of the original, with its weights; ``check_polishable`` accepts it.
        conversion: of that original; modules that its plan keeps are not trained.
        options: how long.
        seed: of the latents and every other draw.
        progress: called with ``(stage, done, total, detail)``.
    """
    return _Polisher(analysis, conversion, options, seed=seed, progress=progress).run()


def apply_and_polish(
    analysis: Analysis,
    plan: Plan,
    options: PolishOptions,
    *,
    seed: int,
    progress: Progress | None,
    **others: Any,
) -> Conversion:
    """Apply ``plan``, and polish the result if that is wanted.

    ``others`` are further options of :func:`dsconvert.core.conversion.apply_to`.

    Raises:
        PolishError: see :func:`~dsconvert.core.polish_options.check_polishable`.
    """
    if options.wanted:
        check_polishable(analysis)
    made = apply_to(analysis, plan, seed=seed, progress=progress, **others)
    if not options.wanted:
        return made
    return polish(analysis, made, options, seed=seed, progress=progress)


class _Polisher:
    def __init__(
        self,
        analysis: Analysis,
        conversion: Conversion,
        options: PolishOptions,
        *,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self._began = time.perf_counter()
        self._analysis, self._conversion, self._options = analysis, conversion, options
        self._seed, self._progress = seed, progress
        self._undone: list[str] = []
        self._picture = self._sounds = False
        limit = None if options.steps is not None else 60 * options.minutes
        self._schedule = PolishSchedule(limit=limit, steps=options.steps)

    def run(self) -> Conversion:
        """Run it; see :func:`polish`."""
        if self._progress is not None:
            self._progress("polish, set-up", 0, 1, "")
        given = self._conversion
        if not given.kept and all(f.residual == 0 for f in given.fits):
            return self._unchanged("exact")
        try:
            trained = working_copy(self._whole(given.model), frozen=given.plan.keep)
            if not any(p.requires_grad for p in trained.parameters()):
                self._undone.append("polish: every weight is kept, or frozen in the model")
                return self._unchanged("exact")
            loop = self._prepared(trained)
        except KeyboardInterrupt:
            return self._unchanged("interrupted")
        except NoGradientsError as error:
            self._undone.append(f"polish: {error}")
            return self._unchanged("undifferentiable")
        start = loop.best.finished().start
        if start.distance < _EXACT:
            return self._recorded(loop.result("patience"), "exact", None)
        result = self._trained(loop)
        return self._recorded(result, _ENDS[result.reason], trained)

    def _whole(self, model: nn.Module) -> nn.Module:
        """Return a result of this analysis in the form of the analysed model."""
        return nn.Sequential(model) if self._analysis.bare else model

    def _prepared(self, trained: nn.Module) -> Loop:
        """Return a loop whose start has been evaluated."""
        # Half precision is too coarse for gradients.
        teacher = self._whole(fast_form(self._analysis)).float()
        teacher = as_pictures(self._analysis, teacher)
        student = as_pictures(self._analysis, trained)
        scale, self._sounds = self._range(teacher)
        if scale == "0 to 1":
            teacher, student = (FromUnit(m, whole=True) for m in (teacher, student))
        self._picture = scale is not None
        near = self._picture and values_of(self._inputs) is not None
        config = polish_config(
            self._options, seed=self._seed, sounds=self._sounds, near=near, picture=self._picture
        )
        if not self._picture and not self._sounds:
            self._undone.append(
                "polish: the output is no image in [-1, 1] or [0, 1], so it is compared value by "
                "value, without the backbone's features"
            )
        batches = self._batches(teacher, student, config)
        loop = Loop(
            batches,
            batches.config,
            began=self._began,
            schedule=self._schedule,
            progress=self._progress,
        )
        took = loop.trial_step()
        self._schedule.expect(took)
        self._tell(took)
        loop.evaluate()
        if near and loop.best.finished().start.terms["image"] < NEAR:
            loop.config = replace(loop.config, lr=NEAR_RATE)
        return loop

    @torch.no_grad()
    def _range(self, teacher: nn.Module) -> tuple[str | None, bool]:
        """Return the range of the images, if they are any, and whether they are sounds."""
        args = like(self._inputs(8, torch.Generator().manual_seed(self._seed)), teacher)
        teacher.eval()
        made = image_tensor(teacher(*args))
        found = picture_range(
            made,
            known=self._analysis.adapter is not None,
            values=values_of(self._inputs),
        )
        return found, found is None and is_sound(made)

    @property
    def _inputs(self) -> Inputs:
        if self._analysis.sampler is None:
            raise PolishError("a model whose inputs are unknown can't be polished.")
        return self._analysis.sampler

    def _batches(
        self, teacher: nn.Module, student: nn.Module, config: DistillConfig
    ) -> TeacherBatches:
        def made(config: DistillConfig) -> TeacherBatches:
            place = device_of(self._analysis.model)
            return teacher_batches(
                teacher, student, self._inputs, config=config, sounds=self._sounds, device=place
            )

        try:
            return made(config)
        except MissingExtraError as error:
            self._undone.append(f"polish: without the backbone's features ({error})")
            return made(replace(config, features=0.0))

    def _tell(self, step_seconds: float) -> None:
        """Say how many steps the time allows, and how long a useful polish takes."""
        reach = self._schedule.reach(time.perf_counter() - self._began)
        minutes = step_seconds * (USEFUL_STEPS + 4) * 1.1 / 60
        expected = PolishForecast(
            steps=reach,
            step_seconds=step_seconds,
            useful_steps=USEFUL_STEPS,
            useful_minutes=minutes,
        )
        if self._options.forecast is not None:
            self._options.forecast(expected)
        if self._progress is not None:
            self._progress("polish, set-up", 0, 1, f"about {reach} steps to come")

    def _trained(self, loop: Loop) -> LoopResult:
        try:
            return loop.run()
        except TrainingError:
            return loop.result("diverged")
        except KeyboardInterrupt:
            # A second interruption: the user does not wait for the last evaluation.
            with suppress(KeyboardInterrupt):
                loop.evaluate()
            return loop.result("interrupted")

    def _recorded(
        self, result: LoopResult, ended: PolishEnd, trained: nn.Module | None
    ) -> Conversion:
        model: nn.Module | None = None
        if trained is not None and result.best_step:
            model = as_given(trained, self._whole(self._conversion.model))
            if not all(bool(p.isfinite().all()) for p in model.parameters()):
                model = None
                self._undone.append("polish: a weight overflows in the model's own type")
        improved = model is not None
        if trained is not None and not result.steps:
            self._undone.append("polish: not one step was made; the model is as it was fitted")
        elif trained is not None and not improved:
            self._undone.append("polish: no evaluation was better than the fit, which stays")
        after = result.after if improved else result.before
        heard = after.terms.get("features") if self._sounds else None
        repeats = ended in ("settled", "minutes", "steps") and result.steps == self._schedule.total
        seconds = time.perf_counter() - self._began
        record = Polish(
            steps=result.steps,
            seconds=seconds,
            ended=ended,
            best_step=result.best_step if improved else 0,
            distance_before=result.before.distance,
            distance_after=after.distance,
            psnr_before=result.before.psnr if self._picture else None,
            psnr_after=after.psnr if self._picture else None,
            repeat=result.steps if repeats and result.steps else None,
        )
        made = self._conversion.model if model is None else self._analysis.result(model)
        return self._with(record, model=made, psnr=record.psnr_after, stft=heard)

    def _unchanged(self, ended: PolishEnd) -> Conversion:
        record = Polish(
            steps=0,
            seconds=time.perf_counter() - self._began,
            ended=ended,
            best_step=0,
            distance_before=None,
            distance_after=None,
        )
        return self._with(record, model=self._conversion.model)

    def _with(
        self,
        record: Polish,
        *,
        model: nn.Module,
        psnr: float | None = None,
        stft: float | None = None,
    ) -> Conversion:
        given = self._conversion
        return replace(
            given,
            model=model,
            psnr=given.psnr if psnr is None else psnr,
            stft=given.stft if stft is None else stft,
            undone=(*given.undone, *self._undone),
            seconds={**given.seconds, "polish": record.seconds},
            polish=record,
        )
