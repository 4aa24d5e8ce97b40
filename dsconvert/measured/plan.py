"""A plan for a target: profile the convolutions, solve, and check on the whole model.

What a convolution costs by itself is measured in :mod:`dsconvert.measured.sites`; how a plan is
found among the forms, and held against the whole model, is in :mod:`dsconvert.measured.search`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsconvert.adapter import adapter_for
from dsconvert.bench import Settings, settle
from dsconvert.errors import TargetError, UsageError
from dsconvert.graph import ConvTypes
from dsconvert.inputs import Inputs, sampler_of
from dsconvert.measured.profile import Profile
from dsconvert.measured.records import TIMED, Candidate, Promise, Target
from dsconvert.measured.search import Job, Miss, Solution, search
from dsconvert.measured.sites import Probe, candidates, original_costs, samples
from dsconvert.measured.solve import solver
from dsconvert.measured.targets import parse_targets
from dsconvert.measured.units import figure
from dsconvert.pipeline import analyse
from dsconvert.planner import make_plan, structural
from dsconvert.records import Plan

_LAYOUT = "measured in channels_last: run it after .to(memory_format=torch.channels_last)"
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class MeasuredPlan:
    """A plan, the layout it was measured in, and what it promises for each target."""

    plan: Plan
    channels_last: bool
    """Whether the model is to run with ``.to(memory_format=torch.channels_last)``."""
    promises: tuple[Promise, ...]
    loss: float
    """Sum of the relative errors of the convolutions, before any fit."""
    probe: Probe
    measured: int
    """How many times were measured now; the others were known from the profile."""
    profile: str
    """Where the profile is kept."""

    def __str__(self) -> str:
        lines = [str(self.plan)]
        for p in self.promises:
            lines.append(
                f"{p.target.text}: {figure(p.metric, p.before)} before, "
                f"{figure(p.metric, p.promised)} promised"
            )
        return "\n".join(lines)


def plan_measured(
    model: nn.Module,
    targets: Sequence[str | Target],
    *,
    batch: int = 1,
    train_batch: int = 4,
    settings: Settings | None = None,
    layouts: Sequence[bool] = (False,),
    keep: Sequence[str] = (),
    leaves: Sequence[str] = (),
    inputs: Inputs | None = None,
    calibrate: int = 8,
    seed: int = 0,
    repeats: int = 5,
    remeasure: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> MeasuredPlan:
    """The plan with the least loss that meets every target on this device.

    The loss of a convolution's form is the relative squared error of its output on the original's
    own activations (``calibrate`` samples), or the energy that its kernel loses (``calibrate=0``);
    both before any fit. A convolution stays dense where nothing measured is faster.

    Args:
        model: left as it was.
        targets: for example ``["latency=0.2x", "params=20M"]``; see
            :func:`~dsconvert.measured.targets.parse_target`.
        batch: of the forward pass whose latency counts.
        train_batch: of the forward + backward that ``train-time`` and ``memory`` are about.
        settings: device, type, threads; default: the device at hand, float32.
        layouts: memory layouts to try; True is channels_last. The one with less loss wins, and the
            plan's note says if the model has to be put into it (a file does not keep it).
        keep: globs of convolutions that stay as they are.
        leaves: names of modules that torch.fx must not look into.
        inputs: sampler of inputs; an adapter's is used otherwise.
        calibrate: samples for the losses.
        seed: of these samples.
        repeats: timed runs of each form.
        remeasure: take no time from an earlier run.
        cache: folder of the profiles; None: the user's cache folder.
        progress: called with ``(stage, done, total, detail)``.

    Raises:
        TargetError: a target is malformed, or out of reach; the message names the nearest.
        MissingExtraError: scipy is not installed.
        DsconvertError: the model can't be traced or run.
    """
    wanted = parse_targets(targets)
    solver()  # what is missing is missed now, not after minutes of work
    settings = settle(settings or Settings())
    if inputs is None:
        if adapter_for(model) is None:
            raise UsageError(
                f"a plan for {type(model).__name__} can't be measured: nothing says what its "
                "inputs look like; pass inputs=lambda n, generator: (...)."
            )
        inputs = sampler_of(model)
    found = analyse(model, leaves=leaves, inputs=inputs).traced
    base = make_plan(found.trace, preset="exact", keep=keep)
    held = {d.site for d in base.decisions if d.requested}
    free = tuple(
        s for s in found.trace.sites if s.calls and s.name not in held and s.locked is None
    )
    job = Job(model=model, traced=found, inputs=inputs, base=base, free=free, targets=wanted)
    profile = Profile(settings, folder=cache, remeasure=remeasure)
    losses = _samples(job, calibrate, seed, progress)
    metrics = tuple(dict.fromkeys(t.metric for t in wanted))
    # Counts do not depend on the layout.
    tried = tuple(dict.fromkeys(layouts)) if any(m in TIMED for m in metrics) else (False,)
    solutions: list[Solution] = []
    misses: list[Miss] = []
    measured = 0
    for layout in tried:
        probe = Probe(
            metrics=metrics,
            batch=batch,
            train_batch=train_batch,
            channels_last=layout,
            settings=settings,
            repeats=repeats,
        )
        try:
            options, originals = _options(job, probe, profile, losses, progress)
        finally:
            measured += profile.measured
            profile.save()
        result = search(job, probe, options, originals, progress)
        if isinstance(result, Miss):
            misses.append(result)
        else:
            solutions.append(result)
    if not solutions:
        raise TargetError(min(misses, key=lambda m: m.overrun).sentence)
    best = min(solutions, key=lambda s: (s.loss, s.promises[0].promised))
    plan = best.plan
    if best.probe.channels_last:
        plan = dataclasses.replace(plan, note="; ".join(n for n in (plan.note, _LAYOUT) if n))
    return MeasuredPlan(
        plan=plan,
        channels_last=best.probe.channels_last,
        promises=best.promises,
        loss=best.loss,
        probe=best.probe,
        measured=measured,
        profile=str(profile.path),
    )


def _samples(job: Job, calibrate: int, seed: int, progress: Progress | None) -> Mapping[str, Any]:
    if calibrate <= 0:
        return {}
    if progress is not None:
        progress("activations", 0, 1, "")
    generator = torch.Generator().manual_seed(seed)
    like = next(job.model.parameters(), torch.empty(0))
    batches = [
        tuple(
            a.to(like.device, like.dtype if a.is_floating_point() else a.dtype)
            if isinstance(a, torch.Tensor)
            else a
            for a in job.inputs(min(4, calibrate - start), generator)
        )
        for start in range(0, calibrate, 4)
    ]
    return samples(job.model, job.free, batches)


def _options(
    job: Job,
    probe: Probe,
    profile: Profile,
    losses: Mapping[str, Any],
    progress: Progress | None,
) -> tuple[list[list[Candidate]], list[dict[str, float]]]:
    """The candidates of every free convolution, and what each costs as it is."""
    modules = dict(job.model.named_modules())
    options: list[list[Candidate]] = []
    originals: list[dict[str, float]] = []
    stage = "time, channels_last" if probe.channels_last else "time the convolutions"
    for done, site in enumerate(job.free):
        if progress is not None:
            progress(stage, done, len(job.free), site.name)
        conv = modules[site.name]
        if not isinstance(conv, ConvTypes):
            raise UsageError(f"{site.name} is a {type(conv).__name__}, not a convolution.")
        originals.append(original_costs(conv, site, probe, profile))
        options.append(
            candidates(
                conv,
                site,
                probe,
                profile,
                sample=losses.get(site.name),
                fixed=structural(site) is not None,
            )
        )
    if progress is not None:
        progress(stage, len(job.free), len(job.free), "")
    return options, originals
