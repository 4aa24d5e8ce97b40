"""The stages in order, as the Python API exports them: plan, apply, convert, cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import nn

from dsconvert.adapter import Adapter, adapter_for, as_adapter
from dsconvert.config.choices import Width
from dsconvert.config.convert import Fitting, Polishing, Rewriting
from dsconvert.core.analysis import Analysis, analyse
from dsconvert.core.conversion import apply_to, check_inputs, check_options
from dsconvert.core.cost import count
from dsconvert.core.merge import merge
from dsconvert.core.notes import log_notes
from dsconvert.core.planner import make_plan
from dsconvert.core.polish import apply_and_polish
from dsconvert.core.polish_options import polish_options
from dsconvert.core.rank_losses import rank_losses
from dsconvert.core.rewrite import costed
from dsconvert.core.widths import width_chooser
from dsconvert.model.inputs import Inputs, examples_for, sampler_of
from dsconvert.model.model_types import types_of
from dsconvert.model.observe import undisturbed
from dsconvert.model.wrappers import unwrapped
from dsconvert.records import Conversion, Cost, Plan
from dsconvert.util.progress import Progress, reports_progress
from dsconvert.width import check_widths, narrow_sites

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
    preset: str = Rewriting.preset,
    rank: int | None = None,
    width: Width | None = None,
    keep: Sequence[str] = (),
    refit: Sequence[str] = (),
    remove: Sequence[str] = (),
    leaves: Sequence[str] = (),
    example_inputs: Sequence[Any] | None = None,
    inputs: Inputs | None = None,
    adapter: Adapter | None = None,
) -> Plan:
    """Decide what to do with every convolution of ``model``, without touching a weight.

    Args:
        model: any ``nn.Module`` that torch.fx can trace; it does not change.
        preset: ``none``, ``exact``, ``paper``, ``balanced`` or ``fast``.
        rank: one rank for all rewrites instead of the preset's own.
        width: the share of its channels that every map keeps, or ``auto``: for each map by loss
            and cost, which runs the model for up to a minute; None: all of them (:func:`convert`
            with a polish: ``auto`` with ``balanced`` and ``fast``).
        keep: globs of module names; these modules keep their bytes: they are neither
            rewritten nor refitted, folded or re-estimated.
        refit: globs of modules that keep their form, but may be refitted to their new inputs.
        remove: globs of modules that ``forward`` does not call and that are removed. Without it
            only modules that never run, according to an adapter, are removed.
        leaves: names of modules that torch.fx must not trace into.
        example_inputs: positional arguments of one forward call; an adapter or ``inputs`` gives
            them otherwise. Without any, MACs and dead modules are unknown.
        inputs: ``inputs(n, generator)`` returns the arguments of a call with batch n.
        adapter: the model's adapter; None: the installed one that knows the model.

    Raises:
        DsconvertError: the model can't be traced, or an option makes no sense for it.
    """
    with undisturbed():
        analysis = analyse(
            model, example_inputs=example_inputs, inputs=inputs, leaves=leaves, adapter=adapter
        )
        return plan_for(
            analysis, preset=preset, rank=rank, width=width, keep=keep, refit=refit, remove=remove
        )  # fmt: skip


def plan_for(
    analysis: Analysis,
    *,
    preset: str = Rewriting.preset,
    rank: int | None = None,
    width: Width | None = None,
    keep: Sequence[str] = (),
    refit: Sequence[str] = (),
    remove: Sequence[str] = (),
    init: str = Fitting.init,
    calibrate: int | None = None,
    polished: bool = False,
    seed: int = Fitting.seed,
    progress: Progress | None = None,
) -> Plan:
    """Make the plan of an analysed model; ``preset`` to ``remove`` are as for :func:`plan`.

    ``init``, ``calibrate`` and ``polished`` are of the conversion that follows (:func:`apply`);
    with a polish ``width`` None is ``auto`` with ``balanced`` and ``fast``. ``seed`` is of the
    samples that widths (of a vocoder: ranks) are chosen by. ``progress`` is called with
    ``(stage, done, total, detail)``.
    """
    budgeted = preset == "balanced" and rank is None
    fitted = init == "fit" and calibrate != 0
    chooser = width_chooser(
        analysis, preset=preset, width=width, init=init, calibrate=calibrate, polished=polished,
        seed=seed, progress=progress,
    )  # fmt: skip
    return make_plan(
        analysis.sites, preset=preset, rank=rank, keep=keep, refit=refit, remove=remove,
        total_macs=analysis.cost.macs if budgeted else None,
        widths=chooser,
        groups=None if chooser is None else analysis.groups,
        sounds=analysis.sounds,
        losses=rank_losses(analysis, seed=seed, progress=progress) if budgeted and fitted else None,
    )  # fmt: skip


def costed_plan(
    model: nn.Module, plan: Plan, *, inputs: Inputs | None = None, adapter: Adapter | None = None
) -> Plan:
    """Check ``plan``, perhaps edited, against ``model``, and return it with its costs updated.

    ``inputs`` and ``adapter`` are as for :func:`plan`.

    Raises:
        PlanError: it does not fit the model.
    """
    with undisturbed():
        return costed_for(analyse(model, inputs=inputs, adapter=adapter), plan)


def costed_for(analysis: Analysis, plan: Plan) -> Plan:
    """Check ``plan`` against an analysed model, and return it with its costs updated.

    Raises:
        PlanError: it does not fit the model.
    """
    if not plan.widths:
        return costed(analysis.sites, plan)
    check_widths(analysis.groups, plan.widths, plan.keep)
    sites = narrow_sites(analysis.sites, analysis.groups, plan.widths)
    return costed(sites, plan, original=analysis.sites)


def cost(
    model: nn.Module,
    example_inputs: Sequence[Any] | None = None,
    *,
    leaves: Sequence[str] = (),
    inputs: Inputs | None = None,
    adapter: Adapter | None = None,
) -> Cost:
    """Return parameters and MACs of ``model``, counted by fvcore for one sample.

    The other arguments are as for :func:`plan`; what is inside a leaf that ran is not reported as
    uncalled.

    Raises:
        TraceError: no module has the name of a leaf.
    """
    model = unwrapped(model)
    with undisturbed():
        known = adapter_for(model) if adapter is None else as_adapter(adapter)
        examples = examples_for(model, example_inputs, inputs, known)
        types = types_of(model, known).leaves
        return count(model, examples, leaves=types, named_leaves=leaves)


@reports_progress
def apply(
    model: nn.Module,
    plan: Plan,
    *,
    init: str = Fitting.init,
    inputs: Inputs | None = None,
    example_inputs: Sequence[Any] | None = None,
    leaves: Sequence[str] = (),
    adapter: Adapter | None = None,
    calibrate: int | None = None,
    seed: int = Fitting.seed,
    polish: float = Polishing.polish,
    polish_steps: int | None = Polishing.polish_steps,
    progress: Progress | bool | None = None,
) -> Conversion:
    """Apply ``plan`` to a copy of ``model``.

    Args:
        model: does not change.
        plan: from :func:`plan`, perhaps edited.
        init: ``fit`` (factors fitted to activations), ``svd`` (from the kernels alone) or
            ``random`` (for training from scratch).
        inputs: sampler of inputs; an adapter's is used otherwise. Without one ``fit`` falls back
            to ``svd``, and a note says so.
        example_inputs: as for :func:`plan`.
        leaves: as for :func:`plan`.
        adapter: as for :func:`plan`.
        calibrate: number of samples for the fit and the statistics; None:
            :data:`~dsconvert.core.fit_layers.DEFAULT_LATENTS`; 0: neither.
        seed: of the samples and every other draw.
        polish: minutes that the fitted model may be trained on the original's images, as
            :func:`dsconvert.distill.distill` does; it ends before when the held-out distance stops
            falling. 0: not at all. Ctrl-C ends the polish and keeps the best model so far.
        polish_steps: exactly so many steps instead, whatever time they take;
            :attr:`Polish.repeat` of an earlier result makes that again.
        progress: called with ``(stage, done, total, detail)``; True: a line on stderr every half
            minute (see :mod:`dsconvert.util.progress`).

    Raises:
        DsconvertError: the plan does not fit the model, an option makes no sense, or the result
            does not run.
    """
    check_options(init, calibrate)
    options = polish_options(polish, polish_steps, init=init)
    with undisturbed():
        began = time.perf_counter()
        analysis = analyse(
            model, example_inputs=example_inputs, inputs=inputs, leaves=leaves, adapter=adapter
        )
        return apply_and_polish(
            analysis,
            plan,
            options,
            init=init,
            calibrate=calibrate,
            seed=seed,
            progress=progress if callable(progress) else None,
            spent={"trace": time.perf_counter() - began},
        )


@reports_progress
def convert(
    model: nn.Module,
    *,
    preset: str = Rewriting.preset,
    rank: int | None = None,
    width: Width | None = None,
    keep: Sequence[str] = (),
    refit: Sequence[str] = (),
    remove: Sequence[str] = (),
    leaves: Sequence[str] = (),
    example_inputs: Sequence[Any] | None = None,
    inputs: Inputs | None = None,
    adapter: Adapter | None = None,
    init: str = Fitting.init,
    calibrate: int | None = None,
    seed: int = Fitting.seed,
    polish: float = Polishing.polish,
    polish_steps: int | None = Polishing.polish_steps,
    progress: Progress | bool | None = None,
) -> nn.Module:
    """Return a faster copy of ``model``: its own class, with some children replaced.

    It runs, trains and pickles without dsconvert; ``model`` does not change. The fit needs
    ``inputs`` where no adapter knows the model: a function that returns the arguments of one call,
    by position, of any batch, and draws them by the generator that it gets. ::

        def inputs(n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
            return (torch.randn(n, 128, generator=generator),)

        fast = dsconvert.convert(model.eval(), inputs=inputs)

    ``example_inputs`` of a single call tell shapes alone. ``preset`` and ``rank`` choose speed or
    quality, ``polish`` trains the result for minutes; see :func:`plan` and :func:`apply` for these,
    the others and the errors. Only :func:`apply` returns the record of the conversion; here the
    logger ``dsconvert`` gets its notes, those about something not done (no fit) as warnings.
    """
    check_options(init, calibrate)
    options = polish_options(polish, polish_steps, init=init)
    with undisturbed():
        analysis = analyse(
            model, example_inputs=example_inputs, inputs=inputs, leaves=leaves, adapter=adapter
        )
        check_inputs(analysis, init, calibrate)
        report = progress if callable(progress) else None
        decided = plan_for(
            analysis, preset=preset, rank=rank, width=width, keep=keep, refit=refit, remove=remove,
            init=init, calibrate=calibrate, polished=options.wanted, seed=seed, progress=report,
        )  # fmt: skip
        made = apply_and_polish(
            analysis, decided, options, init=init, calibrate=calibrate, seed=seed, progress=report
        )
    log_notes(made)
    return made.model
