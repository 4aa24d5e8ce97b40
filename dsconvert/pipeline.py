"""The stages in order: trace, plan, rewrite, fit, report. What the Python API exports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import nn

from dsconvert.adapter import Adapter, adapter_for
from dsconvert.errors import UsageError
from dsconvert.facts import types_of
from dsconvert.fit import DEFAULT_LATENTS, Progress, fit_to_original
from dsconvert.initialise import finish, randomise
from dsconvert.inputs import Inputs, examples_for, resolved_sampler, sampler_of
from dsconvert.merging import merge
from dsconvert.planner import make_plan
from dsconvert.records import INITS, Conversion, Cost, Fit, Plan
from dsconvert.report.counts import count
from dsconvert.rewrite import check_finite, costed, rewrite
from dsconvert.trace import Traced, trace

__all__ = [
    "apply",
    "convert",
    "cost",
    "costed_plan",
    "merge",
    "plan",
    "sampler_of",
    "traced",
]


def _trace(
    model: nn.Module,
    examples: tuple[Any, ...] | None,
    leaves: Sequence[str],
    adapter: Adapter | None,
) -> Traced:
    types = types_of(model, adapter)
    return trace(
        model,
        example_inputs=examples,
        leaves=leaves,
        leaf_types=types.leaves,
        noise_types=types.noises,
        norm_types=types.norms,
    )


def traced(
    model: nn.Module,
    *,
    leaves: Sequence[str] = (),
    example_inputs: Sequence[Any] | None = None,
    inputs: Inputs | None = None,
) -> Traced:
    """The convolutions of ``model``, with what its adapter knows; arguments as for :func:`plan`.

    Raises:
        TraceError: the model can't be traced.
    """
    adapter = adapter_for(model)
    return _trace(model, examples_for(model, example_inputs, inputs, adapter), leaves, adapter)


def plan(
    model: nn.Module,
    *,
    preset: str = "balanced",
    rank: int | None = None,
    keep: Sequence[str] = (),
    leaves: Sequence[str] = (),
    example_inputs: Sequence[Any] | None = None,
    inputs: Inputs | None = None,
) -> Plan:
    """Decide what to do with every convolution of ``model``, without touching a weight.

    Args:
        model: any ``nn.Module`` that torch.fx can trace; it is left as it was.
        preset: ``exact``, ``paper``, ``balanced`` or ``fast``.
        rank: one rank for all rewrites instead of the preset's own.
        keep: globs of module names that stay as they are.
        leaves: names of modules that torch.fx must not look into.
        example_inputs: positional arguments of one forward call; an adapter or ``inputs`` gives
            them otherwise. Without any, MACs and dead modules are unknown.
        inputs: ``inputs(n, generator)`` returns the arguments of a call with batch n.

    Raises:
        DsconvertError: the model can't be traced, or an option makes no sense for it.
    """
    adapter = adapter_for(model)
    examples = examples_for(model, example_inputs, inputs, adapter)
    found = _trace(model, examples, leaves, adapter).trace
    # Only where it is asked for: a count is one more forward pass.
    total = cost(model, examples).macs if preset == "balanced" and rank is None else None
    return make_plan(found, preset=preset, rank=rank, keep=keep, total_macs=total)


def costed_plan(model: nn.Module, plan: Plan, *, inputs: Inputs | None = None) -> Plan:
    """``plan``, perhaps edited, checked against ``model`` and with its costs worked out anew.

    ``inputs`` are as for :func:`plan`.

    Raises:
        PlanError: it does not fit the model.
    """
    adapter = adapter_for(model)
    return costed(
        _trace(model, examples_for(model, None, inputs, adapter), (), adapter).trace, plan
    )


def cost(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    *,
    inputs: Inputs | None = None,
) -> Cost:
    """Parameters and MACs of ``model``, counted by fvcore for one sample.

    ``example_inputs`` and ``inputs`` are as for :func:`plan`.
    """
    adapter = adapter_for(model)
    examples = examples_for(model, example_inputs, inputs, adapter)
    return count(model, examples, leaves=types_of(model, adapter).leaves)


def apply(
    model: nn.Module,
    plan: Plan,
    *,
    init: str = "fit",
    inputs: Inputs | None = None,
    example_inputs: Sequence[Any] | None = None,
    leaves: Sequence[str] = (),
    calibrate: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    costs: tuple[Cost, Cost] | None = None,
    consume: bool = False,
) -> Conversion:
    """Carry out ``plan`` on a copy of ``model``.

    Args:
        model: left as it was.
        plan: from :func:`plan`, perhaps edited.
        init: ``fit`` (factors fitted to activations), ``svd`` (from the kernels alone) or
            ``random`` (for training from scratch).
        inputs: sampler of inputs; an adapter's is used otherwise. Without one ``fit`` falls back
            to ``svd``, and a note says so.
        example_inputs: as for :func:`plan`.
        leaves: as for :func:`plan`.
        calibrate: how many samples the fit and the statistics use; None: enough; 0: neither.
        seed: of the samples and every other draw.
        progress: called with ``(stage, done, total, detail)``.
        costs: before and after, where they are known from a model of the same architecture.
        consume: ``model`` is not needed any more and may be taken apart, which saves the memory of
            a copy where nothing is fitted.

    Raises:
        DsconvertError: the plan does not fit the model, or an option makes no sense.
    """
    if init not in INITS:
        raise UsageError(f"no init is called {init!r}; choose {', '.join(INITS)}.")
    if calibrate is not None and calibrate < 0:
        raise UsageError(f"--calibrate {calibrate} is negative; 0 turns it off.")
    adapter = adapter_for(model)
    seconds: dict[str, float] = {}
    notes: list[str] = []

    began = time.perf_counter()
    examples = examples_for(model, example_inputs, inputs, adapter)
    traced = _trace(model, examples, leaves, adapter)
    plan = costed(traced.trace, plan)
    check_finite(model, plan)
    seconds["trace"] = time.perf_counter() - began

    began = time.perf_counter()
    opaque = types_of(model, adapter).leaves
    before = costs[0] if costs else count(model, examples, leaves=opaque)
    seconds["count"] = time.perf_counter() - began

    latents = DEFAULT_LATENTS if calibrate is None else calibrate
    sampler = resolved_sampler(model, inputs, adapter)
    needed = init != "random" and latents and sampler is not None
    began = time.perf_counter()
    rewritten = rewrite(model, traced.trace, plan, consume=consume and not needed)
    student = rewritten.model
    seconds["factorise"] = time.perf_counter() - began

    fits: tuple[Fit, ...] = tuple(
        Fit(
            site=d.site,
            rank=int(d.rank or 1),
            residual=rewritten.residuals[d.site],
            svd=None,
            fitted=None,
            method="random" if init == "random" else "SVD",
        )
        for d in plan.decisions
        if d.action == "rewrite"
    )
    if init == "random":
        randomise(student, plan, seed=seed)
    elif sampler is None and fits and latents:
        notes.append(
            "not fitted and no statistics re-estimated: nothing says what the inputs look like "
            "(pass inputs=callable); the factors are the kernels' SVD"
        )
    elif sampler is not None and latents and any(f.residual for f in fits):
        began = time.perf_counter()
        outcome = fit_to_original(
            student, model, traced, plan, rewritten.residuals, sampler,
            latents=latents, factors=init == "fit", seed=seed, progress=progress,
        )  # fmt: skip
        fits = _merged(fits, outcome.fits)
        notes += outcome.notes
        if outcome.refitted:
            notes.append("kept, but refitted to their new inputs: " + ", ".join(outcome.refitted))
        seconds["fit" if init == "fit" else "statistics"] = time.perf_counter() - began
    finish(student, traced.trace, plan)

    began = time.perf_counter()
    after = costs[1] if costs else count(student, examples, leaves=opaque)
    seconds["count"] += time.perf_counter() - began
    return Conversion(
        model=student,
        plan=plan,
        fits=fits,
        before=before,
        after=after,
        notes=tuple(notes),
        seconds=seconds,
    )


def _merged(plain: tuple[Fit, ...], fitted: Sequence[Fit]) -> tuple[Fit, ...]:
    by_name = {f.site: f for f in fitted}
    return tuple(by_name.get(f.site, f) for f in plain)


def convert(
    model: nn.Module,
    *,
    preset: str = "balanced",
    rank: int | None = None,
    keep: Sequence[str] = (),
    leaves: Sequence[str] = (),
    example_inputs: Sequence[Any] | None = None,
    inputs: Inputs | None = None,
    init: str = "fit",
    calibrate: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> nn.Module:
    """A faster copy of ``model``: its own class, with ``torch.nn`` children in place of some.

    See :func:`plan` and :func:`apply` for the arguments and errors.
    """
    decided = plan(
        model,
        preset=preset,
        rank=rank,
        keep=keep,
        leaves=leaves,
        example_inputs=example_inputs,
        inputs=inputs,
    )
    return apply(
        model,
        decided,
        init=init,
        inputs=inputs,
        example_inputs=example_inputs,
        leaves=leaves,
        calibrate=calibrate,
        seed=seed,
        progress=progress,
    ).model
