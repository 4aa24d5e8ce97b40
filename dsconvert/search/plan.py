"""Make a plan for a target: profile the convolutions, solve, and check on the whole model.

:mod:`dsconvert.search.candidates` measures single convolutions; :mod:`dsconvert.search.search`
selects among their forms and checks the plan on the whole model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsconvert.adapter import Adapter
from dsconvert.bench import Settings, settle
from dsconvert.config.choices import Width
from dsconvert.core.analysis import analyse
from dsconvert.core.conversion import narrow_analysis
from dsconvert.core.planner import make_plan
from dsconvert.core.presets import structural
from dsconvert.core.widths import width_chooser
from dsconvert.errors import MissedTargetError, UsageError
from dsconvert.model.copying import isolated_copy
from dsconvert.model.graph import ConvTypes
from dsconvert.model.inputs import Inputs, like
from dsconvert.model.observe import undisturbed
from dsconvert.model.wrappers import unwrapped
from dsconvert.search.attempts import Solution, Task, solution, unchanged
from dsconvert.search.candidates import Candidates, samples
from dsconvert.search.clock import ORIGINAL, Clock, MachineClock
from dsconvert.search.consistency import much_slower
from dsconvert.search.decide import changes_nothing
from dsconvert.search.measured_plan import MeasuredPlan
from dsconvert.search.parts import Parts
from dsconvert.search.profile import Profile
from dsconvert.search.records import TIMED, Probe, Target
from dsconvert.search.search import search
from dsconvert.search.solve import solver
from dsconvert.search.targets import parse_targets
from dsconvert.search.timer import Timer
from dsconvert.search.verify import Figures, whole_costs
from dsconvert.util.progress import Progress, reports_progress
from dsconvert.width import choice

_LAYOUT = "measured in channels_last: run it after .to(memory_format=torch.channels_last)"
_MET = "left as it is: the original meets every target"
_REPEAT = "Times vary widely here: if something else runs on this machine, try again without it."
_CHECKED = 2
"""Number of convolutions (the largest) whose earlier times are compared with new ones."""


@reports_progress
@undisturbed()
def plan_measured(
    model: nn.Module,
    targets: Sequence[str | Target],
    *,
    batch: int = 1,
    train_batch: int = 4,
    settings: Settings | None = None,
    layouts: Sequence[bool] = (False,),
    width: Width = 1,
    keep: Sequence[str] = (),
    refit: Sequence[str] = (),
    remove: Sequence[str] = (),
    leaves: Sequence[str] = (),
    inputs: Inputs | None = None,
    adapter: Adapter | None = None,
    calibrate: int = 8,
    seed: int = 0,
    repeats: int = 5,
    remeasure: bool = False,
    cache: Path | None = None,
    clock: Clock | None = None,
    best_effort: bool = False,
    progress: Progress | None = None,
) -> MeasuredPlan:
    """Return the plan with the least loss that meets every target on this device.

    The loss of a convolution's form is the relative squared error of its output on the original's
    own activations (``calibrate`` samples), or the energy that its kernel loses (``calibrate=0``);
    both before any fit. A convolution stays dense if no measured form is faster. If the original
    meets every target, the plan changes nothing and no convolution is measured.

    Contradictory times are measured again, a limited number of times; see
    :mod:`dsconvert.search.consistency`.

    Args:
        model: does not change.
        targets: for example ``["latency=0.2x", "params=20M"]``; see
            :func:`~dsconvert.search.targets.parse_target`.
        batch: batch size of the forward pass for ``latency``.
        train_batch: batch size of forward + backward for ``train-time`` and ``memory``.
        settings: device, type, threads; default: the device at hand, float32.
        layouts: memory layouts to try; True is channels_last. The plan with less loss is
            returned; its note names the layout that the model needs (a file does not store it).
        width: share of its channels that every map keeps, or ``auto`` (that of ``balanced``); the
            forms of the convolutions are then measured at these widths.
        keep: as for :func:`dsconvert.plan`.
        refit: as for :func:`dsconvert.plan`.
        remove: as for :func:`dsconvert.plan`.
        leaves: names of modules that torch.fx must not trace into.
        inputs: sampler of inputs; an adapter's is used otherwise.
        adapter: as for :func:`dsconvert.plan`.
        calibrate: samples for the losses.
        seed: of these samples.
        repeats: timed runs of each form.
        remeasure: take no time from an earlier run.
        cache: folder of the profiles; None: the user's cache folder.
        clock: measures times; None: this machine.
        best_effort: if the targets can't be reached, return the nearest plan with the reason in
            ``missed`` instead of raising.
        progress: called with ``(stage, done, total, detail)``.

    Raises:
        TargetError: a target is malformed.
        MissedTargetError: the targets are out of reach; the message names the nearest.
        MissingExtraError: scipy is not installed.
        DsconvertError: the model can't be traced or run, or its MACs are a target and can't be
            counted.
    """
    wanted = parse_targets(targets)
    solver()  # fail early if SciPy is missing
    settings = settle(settings or Settings())
    # The search runs the model and its parts many times; a forward and hooks may store things.
    own = isolated_copy(unwrapped(model))
    analysis = analyse(own, leaves=leaves, inputs=inputs, adapter=adapter)
    if (sampler := analysis.sampler) is None:
        raise UsageError(
            f"a plan for {type(model).__name__} can't be measured: nothing says what its "
            "inputs look like; pass inputs=lambda n, generator: (...)."
        )
    widths = width_chooser(analysis, preset="balanced", width=width, seed=seed, progress=progress)
    base = make_plan(
        analysis.sites,
        preset="exact",
        keep=keep,
        refit=refit,
        remove=remove,
        widths=widths,
        groups=None if widths is None else analysis.groups,
    )
    narrow = analysis
    if base.widths:
        narrow = narrow_analysis(analysis, choice(analysis.curves(seed, progress), base.widths))
    found = narrow.sites
    held = {d.site for d in base.decisions if d.requested}
    free = tuple(
        s for s in found.convolutions if s.calls and s.name not in held and s.locked is None
    )
    task = Task(
        original=analysis, analysis=narrow, inputs=sampler, base=base, free=free, targets=wanted,
        clock=clock or MachineClock(),
    )  # fmt: skip
    profile = Profile(settings, folder=cache, remeasure=remeasure)
    metrics = tuple(dict.fromkeys(t.metric for t in wanted))
    # Counts do not depend on the layout.
    tried = tuple(dict.fromkeys(layouts)) if any(m in TIMED for m in metrics) else (False,)
    probes = [
        Probe(
            metrics=metrics,
            batch=batch,
            train_batch=train_batch,
            channels_last=layout,
            settings=settings,
            repeats=repeats,
        )
        for layout in tried
    ]
    plain = dataclasses.replace(probes[0], channels_last=False)
    before = whole_costs(
        analysis.model, {}, sampler, plain, clock=task.clock, adapter=analysis.adapter
    )[ORIGINAL]
    if all(_met(t, before) for t in wanted):
        best = solution(task, plain, unchanged(task, before, _MET))
    else:
        losses = _samples(task, calibrate, seed, progress)
        solutions: list[Solution] = []
        for probe in probes:
            try:
                timer = Timer(probe=probe, profile=profile, clock=task.clock)
                parts = _parts(task, timer, losses, progress)
                solutions.append(search(task, probe, parts, before, progress))
            finally:
                profile.save()
        best = min(
            solutions,
            key=lambda s: (s.missed is not None, s.overrun if s.missed else s.loss, s.overrun),
        )
    varied = _varied(profile)
    missed = best.missed
    if missed is not None:
        missed = " ".join([missed, "Ask for no less than that.", *(_REPEAT for _ in varied)])
        if not best_effort:
            raise MissedTargetError(missed)
    plan = best.plan
    if best.probe.channels_last and not changes_nothing(plan):
        plan = dataclasses.replace(plan, note="; ".join(n for n in (plan.note, _LAYOUT) if n))
    return MeasuredPlan(
        plan=plan,
        channels_last=best.probe.channels_last and not changes_nothing(plan),
        promises=best.promises,
        loss=best.loss,
        probe=best.probe,
        measured=profile.measured,
        profile=str(profile.path),
        missed=missed,
        notes=(*profile.notes, *varied, *best.notes),
    )


def _met(target: Target, before: Figures) -> bool:
    """Return whether the original meets a target by more than its spread."""
    if target.ratio is not None:
        return target.ratio >= 1
    figures = before[target.metric]
    highest = figures.value if figures.reading is None else figures.reading.high
    return highest <= target.budget(figures.value)


def _varied(profile: Profile) -> list[str]:
    if not profile.unsettled:
        return []
    return [
        f"{profile.unsettled} times vary widely, also when measured again: something else runs on "
        "this machine"
    ]


def _samples(task: Task, calibrate: int, seed: int, progress: Progress | None) -> Mapping[str, Any]:
    if calibrate <= 0:
        return {}
    if progress is not None:
        progress("activations", 0, 1, "")
    generator = torch.Generator().manual_seed(seed)
    model = task.analysis.model
    batches = [
        like(task.inputs(min(4, calibrate - start), generator), model)
        for start in range(0, calibrate, 4)
    ]
    return samples(model, task.free, batches)


def _parts(task: Task, timer: Timer, losses: Mapping[str, Any], progress: Progress | None) -> Parts:
    """Return the candidates of every free convolution and the costs of the originals."""
    modules = dict(task.analysis.model.named_modules())
    parts = Parts()
    for site in task.free:
        conv = modules[site.name]
        if not isinstance(conv, ConvTypes):
            raise UsageError(f"{site.name} is a {type(conv).__name__}, not a convolution.")
        parts.forms.append(
            Candidates(
                conv,
                site,
                timer,
                sample=losses.get(site.name),
                fixed=structural(site) is not None,
            )
        )
    largest = sorted(parts.forms, key=lambda f: f.site.macs or 0, reverse=True)
    for forms in largest[:_CHECKED]:
        forms.check()
    stage = "time, channels_last" if timer.probe.channels_last else "time the convolutions"
    for done, forms in enumerate(parts.forms):
        if progress is not None:
            progress(stage, done, len(task.free), forms.site.name)
        original, found = forms.original(), forms.candidates()
        # Folding a norm can only save time.
        if much_slower(found[0], original):
            original, found[0] = forms.original(again=True), forms.again(found[0])
        parts.originals.append(original)
        parts.options.append(found)
    if progress is not None:
        progress(stage, len(task.free), len(task.free), "")
    return parts
