"""Apply a plan to an analysed model: rewrite, fit, count, check."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Mapping, Sequence

from torch import nn

from dsconvert.config.choices import INITS
from dsconvert.config.convert import Fitting
from dsconvert.core.analysis import Analysis, analyse
from dsconvert.core.fit_layers import DEFAULT_LATENTS, FitOutcome
from dsconvert.core.fit_model import Narrower, fit_to_original
from dsconvert.core.held_out_psnr import held_out_psnr, held_out_stft
from dsconvert.core.initialise import randomise, restore_spectral_norm
from dsconvert.core.rewrite import check, check_finite, costed, rewrite
from dsconvert.errors import ConversionError, TraceError, UsageError
from dsconvert.model.copying import isolated_copy
from dsconvert.model.inputs import GIVE_INPUTS, RandomPixels, needs_pictures_to_fit, values_of
from dsconvert.model.observe import first_failure
from dsconvert.records import Conversion, Cost, Fit, Plan
from dsconvert.util.progress import Progress
from dsconvert.width import Kept, check_widths, choice, narrow, narrow_sites

SOUND_PIECES = 48
"""Default number of sounds of a fit; the smallest map of one has hundreds of positions."""
_WORTH_COLLECTING = 1 << 20
"""Parameters; to free fewer is not worth the time of a collection (0.2 s)."""


def check_options(init: str, calibrate: int | None) -> None:
    """Check the options of :func:`apply_to` before any work.

    Raises:
        UsageError: an unknown start, or a negative number of samples.
    """
    if init not in INITS:
        raise UsageError(f"no init is called {init!r}; choose {', '.join(INITS)}.")
    if calibrate is not None and calibrate < 0:
        raise UsageError(f"--calibrate {calibrate} is negative; 0 turns it off.")


def check_inputs(analysis: Analysis, init: str, calibrate: int | None) -> None:
    """Check that a conversion has the inputs that it is to be fitted to, before any work.

    Raises:
        UsageError: the model reads pictures, and none are given.
    """
    fitted = init != "random" and calibrate != 0
    if fitted and isinstance(analysis.sampler, RandomPixels):
        raise UsageError(needs_pictures_to_fit(analysis.model, analysis.sampler))


def apply_to(
    analysis: Analysis,
    plan: Plan,
    *,
    init: str = Fitting.init,
    calibrate: int | None = None,
    seed: int = Fitting.seed,
    progress: Progress | None = None,
    costs: tuple[Cost, Cost] | None = None,
    spent: Mapping[str, float] | None = None,
    kept: Kept | None = None,
) -> Conversion:
    """Apply ``plan`` to a copy of an analysed model; see :func:`dsconvert.apply`.

    Args:
        analysis: of the model. Where the model is the library's own and nothing is fitted, the
            model itself is rewritten, which saves the memory of a copy.
        plan: as for :func:`dsconvert.apply`.
        init: as for :func:`dsconvert.apply`.
        calibrate: as for :func:`dsconvert.apply`.
        seed: as for :func:`dsconvert.apply`.
        progress: as for :func:`dsconvert.apply`.
        costs: before and after, if known from a model of the same architecture.
        spent: seconds that earlier stages took, for the record.
        kept: the channels to keep, if they are not to be chosen (of another generator of the same
            training, whose average must stay one of equal channels).
    """
    check_options(init, calibrate)
    check_inputs(analysis, init, calibrate)
    model, whole = analysis.model, analysis.sites.holding(plan.keep)
    narrower = tuple(w for w in plan.widths if w.kept < w.channels)
    if plan.widths:
        check_widths(analysis.groups, plan.widths, plan.keep)
    sites = narrow_sites(whole, analysis.groups, plan.widths) if narrower else whole
    matched = check(sites, plan)
    plan = costed(sites, plan, matched, original=whole)
    check_finite(model, plan)
    seconds = dict(spent or {})
    began = time.perf_counter()
    before = costs[0] if costs else analysis.cost
    seconds["count"] = time.perf_counter() - began

    usual = SOUND_PIECES if analysis.sounds else DEFAULT_LATENTS
    latents = usual if calibrate is None else calibrate
    sampler = analysis.sampler
    needed = init != "random" and latents and sampler is not None
    began = time.perf_counter()
    chosen = _channels(analysis, plan, kept, init, latents, seed, progress) if narrower else {}
    slim = None
    if chosen:
        slim = narrow_analysis(analysis, chosen)
        seconds["width"] = time.perf_counter() - began
        began = time.perf_counter()
    consume = analysis.owned and not needed
    if consume and before.params > _WORTH_COLLECTING:
        # Copies that were traced and counted share the kernels and refer to themselves: until they
        # are collected, no kernel can be freed.
        gc.collect()
    rewritten = rewrite(
        model if slim is None else slim.model,
        sites,
        plan,
        matched=matched,
        consume=consume or slim is not None,
    )
    student = rewritten.model
    seconds["factorise"] = time.perf_counter() - began

    fits = _unfitted(plan, rewritten.residuals, "random" if init == "random" else "SVD")
    notes: tuple[str, ...] = ()
    undone: tuple[str, ...] = ()
    quality: float | None = None
    heard: float | None = None
    if init == "random":
        narrowed = analysis.groups.changed(chosen) if chosen else ()
        randomise(student, plan, seed=seed, narrowed=narrowed)
    elif sampler is None and fits and latents:
        undone = (
            "not fitted and no statistics re-estimated: nothing says what the inputs look like "
            f"({GIVE_INPUTS}); the factors are the kernels' SVD",
        )
    elif sampler is not None and latents and (slim is not None or any(f.residual for f in fits)):
        began = time.perf_counter()
        outcome = fit_to_original(
            student, model, sites, analysis.graph, plan, rewritten.residuals, sampler,
            latents=latents, factors=init == "fit", seed=seed,
            progress=progress,
            narrower=None if slim is None else Narrower(analysis.groups, chosen, slim.graph),
        )  # fmt: skip
        fitted = {f.site: f for f in outcome.fits}
        fits = tuple(fitted.get(f.site, f) for f in fits)
        notes, undone = _notes(outcome), tuple(outcome.undone)
        quality = held_out_psnr(outcome.held_out, analysis.adapter, values_of(sampler))
        heard = held_out_stft(outcome.held_out, analysis.adapter)
        seconds["fit" if init == "fit" else "statistics"] = time.perf_counter() - began
    restore_spectral_norm(student, sites, plan, untrained=init == "random")

    began = time.perf_counter()
    after = costs[1] if costs else analysis.count(student, own=analysis.owned)
    rewrites = {d.site for d in plan.decisions if d.action == "rewrite"}
    # fvcore counts under torch.jit, where a model may take another path.
    if after.macs is None or rewrites & {*after.uncalled}:
        _check_used(analysis, plan, _check_runs(analysis, student, plan))
    seconds["count"] += time.perf_counter() - began
    return Conversion(
        model=analysis.result(student),
        plan=plan,
        fits=fits,
        before=before,
        after=after,
        notes=notes,
        undone=undone,
        seconds=seconds,
        kept=chosen,
        psnr=quality,
        stft=heard,
    )


def _channels(
    analysis: Analysis,
    plan: Plan,
    kept: Kept | None,
    init: str,
    latents: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, tuple[int, ...]]:
    """Return the channels that stay, by group.

    Raises:
        UsageError: they can't be chosen, since nothing may be run.
    """
    if kept is not None:
        return {group: tuple(units) for group, units in kept.items()}
    if init == "random":
        return {w.group: tuple(range(w.kept)) for w in plan.widths if w.kept < w.channels}
    if not latents:
        raise UsageError(
            "fewer channels are chosen by the activations of random latents; drop --calibrate 0, "
            "or keep the width (--width 1)."
        )
    return choice(analysis.curves(seed, progress), plan.widths)


def narrow_analysis(analysis: Analysis, kept: Kept) -> Analysis:
    """Return the analysis of a narrower copy.

    Raises:
        ConversionError: the copy does not run.
    """
    made = narrow(analysis.model, analysis.groups, kept)
    try:
        return analyse(
            made,
            example_inputs=analysis.examples,
            inputs=analysis.sampler,
            leaves=analysis.sites.leaves,
            adapter=analysis.adapter,
            owned=True,
        )
    except TraceError as error:
        raise ConversionError(
            f"the {type(analysis.model).__name__} does not run with fewer channels ({error}). Its "
            "code depends on their number: keep its width (--width 1)."
        ) from error


def _unfitted(plan: Plan, residuals: dict[str, float], method: str) -> tuple[Fit, ...]:
    return tuple(
        Fit(
            site=d.site,
            rank=int(d.rank or 1),
            residual=residuals[d.site],
            svd=None,
            fitted=None,
            method=method,
        )
        for d in plan.decisions
        if d.action == "rewrite"
    )


def _notes(outcome: FitOutcome) -> tuple[str, ...]:
    notes: list[str] = []
    if outcome.refitted:
        notes.append("kept, but refitted to their new inputs: " + ", ".join(outcome.refitted))
    if outcome.statistics:
        notes.append("statistics re-estimated: " + ", ".join(outcome.statistics))
    return tuple(notes)


def _check_runs(analysis: Analysis, student: nn.Module, plan: Plan) -> tuple[str, ...]:
    """Run the result once (a counted one has run already); return the new modules that did not run.

    Raises:
        ConversionError: it fails. The message names the module and what to keep.
    """
    if analysis.examples is None:
        return ()
    twin = isolated_copy(student, share_parameters=True)
    changed = [d.site for d in plan.decisions if d.action == "rewrite"]
    idle = set(changed)
    for site in changed:
        record = functools.partial(_record_call, idle, site)
        twin.get_submodule(site).register_forward_pre_hook(record)
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


def _record_call(idle: set[str], site: str, *_: object) -> None:
    idle.discard(site)


def _check_used(analysis: Analysis, plan: Plan, idle: Sequence[str]) -> None:
    """Check that the model calls every replacement.

    Raises:
        ConversionError: it does not call one, so its output is not that of the plan.
    """
    passed = [d.site for d in plan.decisions if d.action == "rewrite" and d.site in idle]
    if passed:
        raise ConversionError(
            f"the converted {type(analysis.model).__name__} does not call what replaces "
            f"{', '.join(passed)}: its forward finds that convolution by its class, or in a list "
            f"or attribute of its own. Keep it: keep={passed!r} in Python, or "
            f"--keep {' '.join(passed)}."
        )
