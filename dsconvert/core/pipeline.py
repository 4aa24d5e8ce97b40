"""The stages in order: analyse, plan, rewrite, fit, count. What the Python API exports."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Sequence
from typing import Any

from torch import nn

from dsconvert.adapter import adapter_for
from dsconvert.config.choices import INITS
from dsconvert.core.analysis import Analysis, analyse
from dsconvert.core.cost import count
from dsconvert.core.held_out_psnr import held_out_psnr
from dsconvert.core.initialise import finish, randomise
from dsconvert.core.merge import merge
from dsconvert.core.planner import make_plan
from dsconvert.core.rewrite import check, check_finite, costed, rewrite
from dsconvert.errors import ConversionError, UsageError
from dsconvert.fit import DEFAULT_LATENTS, Progress, fit_to_original
from dsconvert.model.copying import isolated_copy
from dsconvert.model.inputs import Inputs, examples_for, sampler_of
from dsconvert.model.model_types import types_of
from dsconvert.model.observe import first_failure, undisturbed
from dsconvert.model.wrappers import unwrapped
from dsconvert.records import Conversion, Cost, Fit, Plan
from dsconvert.util.progress import reports_progress

__all__ = [
    "Analysis",
    "Inputs",
    "adapter_for",
    "analyse",
    "apply",
    "apply_to",
    "convert",
    "cost",
    "costed_plan",
    "merge",
    "plan",
    "plan_for",
    "sampler_of",
]


def plan(
    model: nn.Module,
    *,
    preset: str = "balanced",
    rank: int | None = None,
    keep: Sequence[str] = (),
    refit: Sequence[str] = (),
    remove: Sequence[str] = (),
    leaves: Sequence[str] = (),
    example_inputs: Sequence[Any] | None = None,
    inputs: Inputs | None = None,
) -> Plan:
    """Decide what to do with every convolution of ``model``, without touching a weight.

    Args:
        model: any ``nn.Module`` that torch.fx can trace; it is left as it was.
        preset: ``exact``, ``paper``, ``balanced`` or ``fast``.
        rank: one rank for all rewrites instead of the preset's own.
        keep: globs of module names; what they name keeps its very bytes: it is neither rewritten
            nor refitted, folded or re-estimated.
        refit: globs of modules that keep their form, but may be refitted to their new inputs.
        remove: globs of modules that ``forward`` does not call and that are to be taken out. By
            itself only that goes which an adapter knows never to run.
        leaves: names of modules that torch.fx must not look into.
        example_inputs: positional arguments of one forward call; an adapter or ``inputs`` gives
            them otherwise. Without any, MACs and dead modules are unknown.
        inputs: ``inputs(n, generator)`` returns the arguments of a call with batch n.

    Raises:
        DsconvertError: the model can't be traced, or an option makes no sense for it.
    """
    with undisturbed():
        analysis = analyse(model, example_inputs=example_inputs, inputs=inputs, leaves=leaves)
        return plan_for(
            analysis, preset=preset, rank=rank, keep=keep, refit=refit, remove=remove
        )  # fmt: skip


def plan_for(
    analysis: Analysis,
    *,
    preset: str = "balanced",
    rank: int | None = None,
    keep: Sequence[str] = (),
    refit: Sequence[str] = (),
    remove: Sequence[str] = (),
) -> Plan:
    """The same for a model that is analysed already."""
    # Only where it is asked for: a count is one more forward pass.
    total = analysis.cost.macs if preset == "balanced" and rank is None else None
    return make_plan(
        analysis.trace,
        preset=preset,
        rank=rank,
        keep=keep,
        refit=refit,
        remove=remove,
        total_macs=total,
    )


def costed_plan(model: nn.Module, plan: Plan, *, inputs: Inputs | None = None) -> Plan:
    """``plan``, perhaps edited, checked against ``model`` and with its costs worked out anew.

    ``inputs`` are as for :func:`plan`.

    Raises:
        PlanError: it does not fit the model.
    """
    with undisturbed():
        return costed(analyse(model, inputs=inputs).trace, plan)


def cost(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    *,
    inputs: Inputs | None = None,
) -> Cost:
    """Parameters and MACs of ``model``, counted by fvcore for one sample.

    ``example_inputs`` and ``inputs`` are as for :func:`plan`.
    """
    model = unwrapped(model)
    with undisturbed():
        adapter = adapter_for(model)
        examples = examples_for(model, example_inputs, inputs, adapter)
        return count(model, examples, leaves=types_of(model, adapter).leaves)


@reports_progress
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
    progress: Progress | bool | None = None,
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
        progress: called with ``(stage, done, total, detail)``; True: a line on stderr every half
            minute (see :mod:`dsconvert.util.progress`).

    Raises:
        DsconvertError: the plan does not fit the model, an option makes no sense, or the result
            does not run.
    """
    _check_options(init, calibrate)
    with undisturbed():
        began = time.perf_counter()
        analysis = analyse(model, example_inputs=example_inputs, inputs=inputs, leaves=leaves)
        return apply_to(
            analysis,
            plan,
            init=init,
            calibrate=calibrate,
            seed=seed,
            progress=progress if callable(progress) else None,
            traced=time.perf_counter() - began,
        )


def _check_options(init: str, calibrate: int | None) -> None:
    if init not in INITS:
        raise UsageError(f"no init is called {init!r}; choose {', '.join(INITS)}.")
    if calibrate is not None and calibrate < 0:
        raise UsageError(f"--calibrate {calibrate} is negative; 0 turns it off.")


def apply_to(
    analysis: Analysis,
    plan: Plan,
    *,
    init: str = "fit",
    calibrate: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    costs: tuple[Cost, Cost] | None = None,
    traced: float = 0.0,
) -> Conversion:
    """The same for a model that is analysed already.

    Args:
        analysis: of the model. Where the model is the library's own and nothing is fitted, the
            model itself is rewritten, which saves the memory of a copy.
        plan: as for :func:`apply`.
        init: as for :func:`apply`.
        calibrate: as for :func:`apply`.
        seed: as for :func:`apply`.
        progress: as for :func:`apply`.
        costs: before and after, where they are known from a model of the same architecture.
        traced: seconds that the analysis took, for the record.
    """
    _check_options(init, calibrate)
    model, trace = analysis.model, analysis.trace.holding(plan.keep)
    matched = check(trace, plan)
    plan = costed(trace, plan, matched)
    check_finite(model, plan)
    notes: list[str] = []
    seconds: dict[str, float] = {"trace": traced}
    began = time.perf_counter()
    before = costs[0] if costs else analysis.cost
    seconds["count"] = time.perf_counter() - began

    latents = DEFAULT_LATENTS if calibrate is None else calibrate
    sampler = analysis.sampler
    needed = init != "random" and latents and sampler is not None
    began = time.perf_counter()
    consume = analysis.owned and not needed
    if consume:
        # Copies that were traced and counted share the kernels, and refer to themselves: as long as
        # they wait for the collector, no kernel is freed when its factors are there.
        gc.collect()
    rewritten = rewrite(model, trace, plan, matched=matched, consume=consume)
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
    quality: float | None = None
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
            student, model, analysis.traced, plan, rewritten.residuals, sampler,
            latents=latents, factors=init == "fit", seed=seed,
            progress=progress,
        )  # fmt: skip
        fits = _merged(fits, outcome.fits)
        notes += outcome.notes
        quality = held_out_psnr(outcome.held_out, analysis.adapter)
        if outcome.refitted:
            notes.append("kept, but refitted to their new inputs: " + ", ".join(outcome.refitted))
        if outcome.restated:
            notes.append("statistics re-estimated: " + ", ".join(outcome.restated))
        seconds["fit" if init == "fit" else "statistics"] = time.perf_counter() - began
    finish(student, trace, plan)

    began = time.perf_counter()
    after = costs[1] if costs else analysis.count(student, own=analysis.owned)
    rewrites = {d.site for d in plan.decisions if d.action == "rewrite"}
    # A model may do other things under torch.jit, with which fvcore counts.
    if after.macs is None or rewrites & {*after.uncalled}:
        _check_used(analysis, plan, _check_runs(analysis, student, plan))
    seconds["count"] += time.perf_counter() - began
    return Conversion(
        model=analysis.result(student),
        plan=plan,
        fits=fits,
        before=before,
        after=after,
        notes=tuple(notes),
        seconds=seconds,
        psnr=quality,
    )


def _check_runs(analysis: Analysis, student: nn.Module, plan: Plan) -> tuple[str, ...]:
    """Run the result once (what fvcore has counted ran already); the new modules that it left out.

    Raises:
        ConversionError: it fails. The message names the module and what to keep.
    """
    if analysis.examples is None:
        return ()
    twin = isolated_copy(student, share_parameters=True)
    changed = [d.site for d in plan.decisions if d.action == "rewrite"]
    idle = set(changed)
    for site in changed:
        note = functools.partial(_note_call, idle, site)
        twin.get_submodule(site).register_forward_pre_hook(note)
    failure = first_failure(twin, analysis.examples)
    if failure is None:
        return tuple(s for s in changed if s in idle)
    name, error = failure
    near = [s for s in changed if s.startswith(f"{name}.") or not name] or changed
    keep = f"{name}.*" if name and near != changed else near[0] if len(near) == 1 else "*"
    lines = str(error).strip().splitlines()
    where = f"in {name}" if name else "in its own forward"
    raise ConversionError(
        f"the converted {type(analysis.model).__name__} does not run: {type(error).__name__} "
        f"{where} ({lines[0] if lines else 'no message'}). Something there uses a convolution as "
        f"more than a function; keep it: --keep {keep!r}, or keep=[{keep!r}] in Python."
    )


def _note_call(idle: set[str], site: str, *_: Any) -> None:
    idle.discard(site)


def _check_used(analysis: Analysis, plan: Plan, idle: Sequence[str]) -> None:
    """See that the model calls what was put in place of its convolutions.

    Raises:
        ConversionError: it passes one over. What it makes is then not what was planned.
    """
    passed = [d.site for d in plan.decisions if d.action == "rewrite" and d.site in idle]
    if passed:
        raise ConversionError(
            f"the converted {type(analysis.model).__name__} does not call what replaces "
            f"{', '.join(passed)}: its forward finds that convolution by its class, or in a list "
            f"or attribute of its own. Keep it: keep={passed!r} in Python, or "
            f"--keep {' '.join(passed)}."
        )


def _merged(plain: tuple[Fit, ...], fitted: Sequence[Fit]) -> tuple[Fit, ...]:
    by_name = {f.site: f for f in fitted}
    return tuple(by_name.get(f.site, f) for f in plain)


@reports_progress
def convert(
    model: nn.Module,
    *,
    preset: str = "balanced",
    rank: int | None = None,
    keep: Sequence[str] = (),
    refit: Sequence[str] = (),
    remove: Sequence[str] = (),
    leaves: Sequence[str] = (),
    example_inputs: Sequence[Any] | None = None,
    inputs: Inputs | None = None,
    init: str = "fit",
    calibrate: int | None = None,
    seed: int = 0,
    progress: Progress | bool | None = None,
) -> nn.Module:
    """A faster copy of ``model``: its own class, with ``torch.nn`` children in place of some.

    See :func:`plan` and :func:`apply` for the arguments and errors.
    """
    _check_options(init, calibrate)
    with undisturbed():
        analysis = analyse(model, example_inputs=example_inputs, inputs=inputs, leaves=leaves)
        decided = plan_for(
            analysis, preset=preset, rank=rank, keep=keep, refit=refit, remove=remove
        )  # fmt: skip
        return apply_to(
            analysis,
            decided,
            init=init,
            calibrate=calibrate,
            seed=seed,
            progress=progress if callable(progress) else None,
        ).model
