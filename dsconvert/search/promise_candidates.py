"""The candidates of a promised quality: presets at several widths, with times and losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from dsconvert.config.choices import Width
from dsconvert.core.analysis import Analysis
from dsconvert.core.conversion import apply_to
from dsconvert.core.pipeline import plan_for
from dsconvert.core.polish_options import PolishOptions
from dsconvert.errors import ConversionError, PlanError, UsageError
from dsconvert.metrics.quality import Judge
from dsconvert.model.inputs import Inputs
from dsconvert.records import Plan
from dsconvert.search.channel_trials import can_narrow
from dsconvert.search.clock import ORIGINAL, Clock
from dsconvert.search.predictor import predict_loss
from dsconvert.search.quality_targets import QualityTarget
from dsconvert.search.records import Probe, Target
from dsconvert.search.trial_rig import Sensitivity
from dsconvert.search.tries import Try
from dsconvert.search.verify import Figures, whole_costs
from dsconvert.util.numbers import counted
from dsconvert.util.progress import Progress

CANDIDATES: tuple[tuple[str, Width], ...] = (
    ("exact", 1.0), ("none", 0.75), ("none", 0.5), ("none", "auto"), ("balanced", 1.0),
    ("balanced", 0.75), ("balanced", 0.5), ("balanced", "auto"), ("fast", 1.0), ("fast", 0.75),
    ("fast", 0.5), ("fast", "auto"), ("fast", 0.35),
)  # fmt: skip
"""Preset and width of each."""
_FASTER = 0.97
"""A plan that takes a larger share of the original's time is not worth a try."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The input of a search for one generator.

    Attributes:
        analysis: of the original, which has its weights.
        inputs: sampler of inputs.
        qualities: what is promised.
        targets: for time, memory or size, which must hold as well.
        probe: how times are measured; its first metric is the one that is to be fast.
        clock: measures them.
        polishing: of each try.
        picture: returns a model as one that returns images in [-1, 1].
        search, promise: judges on latents of their own.
        keep, refit, remove: as for :func:`dsconvert.plan`.
        calibrate, seed: as for :func:`dsconvert.apply`.
    """

    analysis: Analysis
    inputs: Inputs
    qualities: tuple[QualityTarget, ...]
    targets: tuple[Target, ...]
    probe: Probe
    clock: Clock
    polishing: PolishOptions
    picture: Callable[[nn.Module], nn.Module]
    search: Judge
    promise: Judge
    keep: tuple[str, ...] = ()
    refit: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    calibrate: int | None = None
    seed: int = 0


def candidates(
    work: Work, known: Callable[[], Sensitivity], progress: Progress | None
) -> list[Try]:
    """Return every candidate with its times and its predicted loss; nothing is fitted.

    Narrower ones are left out if the model has no gradients, by which channels are chosen, and any
    one whose result does not run.

    Raises:
        UsageError: no candidate changes anything.
        ConversionError: no candidate's result runs.
    """
    plans: dict[str, Plan] = {}
    narrows = can_narrow(work.analysis, work.seed, progress)
    for preset, width in CANDIDATES:
        if width != 1 and not narrows:
            continue
        if progress is not None:
            progress("plans", len(plans), len(CANDIDATES), f"{preset}, width {width}")
        try:
            made = plan_for(
                work.analysis, preset=preset, width=width,
                keep=work.keep, refit=work.refit, remove=work.remove, calibrate=work.calibrate,
                seed=work.seed, progress=progress,
            )  # fmt: skip
        except PlanError:
            if work.keep or work.refit or work.remove:
                raise
            continue
        narrower = any(w.kept < w.channels for w in made.widths)
        changes = narrower or made.remove or any(d.action == "rewrite" for d in made.decisions)
        same = (made.decisions, made.widths) in [(p.decisions, p.widths) for p in plans.values()]
        if changes and not same:
            plans[f"{preset}, width {width:g}" if width != "auto" else f"{preset}, auto"] = made
    if not plans:
        raise UsageError("no plan changes this generator: there is no faster form to promise.")
    models: dict[str, nn.Module] = {}
    failure: ConversionError | None = None
    for name, made in plans.items():
        try:
            models[name] = _unfitted(work, made)
        except ConversionError as error:
            failure = error
    if failure is not None and not models:
        raise failure
    figures = _figures(work, models, progress)
    sensitivity = known()
    found: list[Try] = []
    for name in models:
        found.append(
            Try(
                name=name, plan=plans[name], loss=predict_loss(plans[name], sensitivity).fitted,
                before=figures[ORIGINAL], figures=figures[name],
            )
        )  # fmt: skip
    return found


def time_again(work: Work, tries: Sequence[Try], progress: Progress | None) -> None:
    """Measure the times, memory and size of all candidates anew, in place; nothing else changes."""
    figures = _figures(work, {t.name: _unfitted(work, t.plan) for t in tries}, progress)
    for one in tries:
        one.before, one.figures = figures[ORIGINAL], figures[one.name]


def _unfitted(work: Work, plan: Plan) -> nn.Module:
    return apply_to(
        work.analysis, plan, init="random", calibrate=0, seed=work.seed,
        costs=(work.analysis.cost, work.analysis.cost),
    ).model  # fmt: skip


def _figures(
    work: Work, models: Mapping[str, nn.Module], progress: Progress | None
) -> dict[str, Figures]:
    """Return the figures of each model and of the original."""
    if progress is not None:
        progress("time the plans", 0, 1, counted(len(models), "plan"))
    return whole_costs(
        work.analysis.model, models, work.inputs, work.probe, clock=work.clock,
        adapter=work.analysis.adapter,
    )  # fmt: skip


def in_order(work: Work, tries: Sequence[Try]) -> list[Try]:
    """Return the candidates that are worth a try, the fastest first.

    They meet every target of cost, are faster than the original, and no faster one has a smaller
    predicted loss.
    """
    metric = work.probe.metrics[0]
    able = [
        t
        for t in tries
        if overrun(work, t) <= 1 and t.figures[metric].value <= _FASTER * t.before[metric].value
    ]
    able.sort(key=lambda t: t.figures[metric].value)
    worth: list[Try] = []
    for one in able:
        if not worth or one.loss < worth[-1].loss:
            worth.append(one)
    return worth


def overrun(work: Work, one: Try) -> float:
    """Return the worst ratio of a figure to its budget; at most 1 if every target is met."""
    return max(
        (
            one.figures[t.metric].value / t.budget(one.before[t.metric].value)
            for t in work.targets
        ),
        default=0.0,
    )  # fmt: skip
