"""The stages in order: trace, plan, rewrite, fit, report. What the Python API exports."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from dsconvert.adapter import Adapter, adapter_for
from dsconvert.errors import AdapterError, UsageError
from dsconvert.fit import BATCH, DEFAULT_LATENTS, Outcome, Progress, run
from dsconvert.initialise import finish, randomise
from dsconvert.merging import merge
from dsconvert.norms import fold, norm_kind
from dsconvert.planner import make_plan
from dsconvert.records import INITS, Conversion, Cost, Fit, Plan
from dsconvert.report.counts import count
from dsconvert.rewrite import copied, costed, rewrite
from dsconvert.trace import ConvTypes, Traced, trace

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

Inputs = Callable[[int, torch.Generator], tuple[Any, ...]]
"""``inputs(n, generator)`` returns the positional arguments of one forward call, batch n."""


def _device(model: nn.Module) -> torch.device:
    tensor = next(model.parameters(), None)
    return tensor.device if tensor is not None else torch.device("cpu")


def _dtype(model: nn.Module) -> torch.dtype:
    tensor = next((p for p in model.parameters() if p.is_floating_point()), None)
    return tensor.dtype if tensor is not None else torch.float32


def _like(args: tuple[Any, ...], model: nn.Module) -> tuple[Any, ...]:
    """Arguments on the model's device, floating ones in its dtype."""
    device, dtype = _device(model), _dtype(model)
    return tuple(
        (a.to(device, dtype) if a.is_floating_point() else a.to(device))
        if isinstance(a, torch.Tensor)
        else a
        for a in args
    )


def _sampler(model: nn.Module, inputs: Inputs | None, adapter: Adapter | None) -> Inputs | None:
    if inputs is not None:
        return inputs
    return adapter.sampler(model) if adapter is not None else None


def sampler_of(model: nn.Module) -> Inputs:
    """The sampler that the model's adapter knows.

    Raises:
        AdapterError: no installed adapter knows the model.
    """
    adapter = adapter_for(model)
    if adapter is None:
        raise AdapterError(f"no installed adapter knows {type(model).__name__}; pass inputs.")
    return adapter.sampler(model)


def _examples(
    model: nn.Module,
    example_inputs: Sequence[Any] | None,
    inputs: Inputs | None,
    adapter: Adapter | None,
) -> tuple[Any, ...] | None:
    if example_inputs is not None:
        return tuple(example_inputs)
    sampler = _sampler(model, inputs, adapter)
    if sampler is None:
        return None
    return _like(sampler(1, torch.Generator().manual_seed(0)), model)


def _trace(
    model: nn.Module,
    examples: tuple[Any, ...] | None,
    leaves: Sequence[str],
    adapter: Adapter | None,
) -> Traced:
    if adapter is None:
        return trace(model, example_inputs=examples, leaves=leaves)
    return trace(
        model,
        example_inputs=examples,
        leaves=leaves,
        leaf_types=_also_theirs(model, adapter.leaves()),
        noise_types=_also_theirs(model, adapter.noise_types()),
        norm_types=_also_theirs(model, adapter.norm_types()),
    )


def _also_theirs(
    model: nn.Module, types: tuple[type[nn.Module], ...]
) -> tuple[type[nn.Module], ...]:
    """An adapter's classes, and the original code's of those names (a live model of it)."""
    names = {t.__name__ for t in types}
    theirs = {type(m) for m in model.modules() if type(m).__name__ in names}
    return (*types, *(theirs - set(types)))


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
    return _trace(model, _examples(model, example_inputs, inputs, adapter), leaves, adapter)


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
    examples = _examples(model, example_inputs, inputs, adapter)
    return make_plan(
        _trace(model, examples, leaves, adapter).trace, preset=preset, rank=rank, keep=keep
    )


def costed_plan(model: nn.Module, plan: Plan, *, inputs: Inputs | None = None) -> Plan:
    """``plan``, perhaps edited, checked against ``model`` and with its costs worked out anew.

    ``inputs`` are as for :func:`plan`.

    Raises:
        PlanError: it does not fit the model.
    """
    adapter = adapter_for(model)
    return costed(_trace(model, _examples(model, None, inputs, adapter), (), adapter).trace, plan)


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
    examples = _examples(model, example_inputs, inputs, adapter)
    return count(model, examples, leaves=adapter.leaves() if adapter is not None else ())


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
    examples = _examples(model, example_inputs, inputs, adapter)
    traced = _trace(model, examples, leaves, adapter)
    plan = costed(traced.trace, plan)
    _check_finite(model, plan)
    seconds["trace"] = time.perf_counter() - began

    began = time.perf_counter()
    opaque = adapter.leaves() if adapter is not None else ()
    before = costs[0] if costs else count(model, examples, leaves=opaque)
    seconds["count"] = time.perf_counter() - began

    latents = DEFAULT_LATENTS if calibrate is None else calibrate
    sampler = _sampler(model, inputs, adapter)
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
        outcome = _fit(
            model, student, traced, plan, rewritten.residuals, sampler,
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


def _check_finite(model: nn.Module, plan: Plan) -> None:
    gone = tuple(f"{name}." for name in plan.remove)
    bad = [
        name
        for name, tensor in model.named_parameters()
        if not name.startswith(gone) and not bool(tensor.isfinite().all())
    ]
    if bad:
        raise UsageError(
            f"{len(bad)} of the weights of this {type(model).__name__} are not finite (the first: "
            f"{bad[0]}): its training diverged, and so there are no pictures to keep. Take an "
            "earlier snapshot; where a file holds two generators, --drop the broken one."
        )


def _merged(plain: tuple[Fit, ...], fitted: Sequence[Fit]) -> tuple[Fit, ...]:
    by_name = {f.site: f for f in fitted}
    return tuple(by_name.get(f.site, f) for f in plain)


def _fit(
    model: nn.Module,
    student: nn.Module,
    traced: Traced,
    plan: Plan,
    residuals: dict[str, float],
    sampler: Inputs,
    *,
    latents: int,
    factors: bool,
    seed: int,
    progress: Progress | None,
) -> Outcome:
    teacher = copied(model)
    for module in teacher.modules():
        if isinstance(module, ConvTypes) and norm_kind(module) != "none":
            fold(module)
    # Half precision is for running, not for normal equations.
    narrow = _dtype(model) not in (torch.float32, torch.float64)
    working = copy.deepcopy(student).float() if narrow else student
    if narrow:
        teacher.float()
    generator = torch.Generator().manual_seed(seed)
    batches = [
        _like(sampler(BATCH, generator), teacher) for _ in range(max(2, -(-latents // BATCH)))
    ]
    outcome = run(
        graph=traced.graph,
        trace=traced.trace,
        plan=plan,
        teacher=teacher,
        student=working,
        batches=batches,
        residuals=residuals,
        factors=factors,
        seed=seed,
        progress=progress,
    )
    if narrow:
        student.load_state_dict(working.state_dict())
    return outcome


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
