"""Fit a rewritten model to its original, layer by layer, in one pass through the graph."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import Follows
from dsconvert.fit import Sample, fit_dense
from dsconvert.fit.activation_stream import ActivationStream, LayerCall
from dsconvert.fit.overflow import extreme, fit_or_restore, peak, representable
from dsconvert.fit.statistics import buffers_of, correct_statistics
from dsconvert.model.graph import TracedGraph
from dsconvert.model.one_dimensional import as_2d, map_as_2d, outputs_first, write_back
from dsconvert.records import Fit, Plan, Site, Sites, within
from dsconvert.rules import rule_named
from dsconvert.util.progress import Progress
from dsconvert.width import Absorber

BATCH = 4
DEFAULT_LATENTS = 768
"""Default number of latents; more barely reduce the held-out error. Large maps use fewer."""
_BUDGET = 512 << 20
"""Bytes of one node's output on one side; two or three nodes and both sides are alive at once."""
_POSITIONS = 300_000
"""Pixels that a layer is fitted to, over all latents; more barely reduce the held-out error."""
_EXACT = 1e-9
"""Below this error nothing is fitted: the layer is exact up to rounding."""
_SVD = "SVD"
"""The method of a layer that keeps its start."""


@dataclass
class FitOutcome:
    """The measurements of a fit.

    Attributes:
        fits: of each rewritten layer.
        statistics: batch normalisations whose statistics were corrected.
        refitted: kept convolutions that were refitted to their new inputs.
        unsolved: layers that keep the SVD of their kernel, since no solution is finite.
        undone: what was not fitted, and why.
        held_out: the outputs of student and teacher for the held-out batch.
    """

    fits: list[Fit] = field(default_factory=list)
    statistics: list[str] = field(default_factory=list)
    refitted: list[str] = field(default_factory=list)
    unsolved: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    held_out: tuple[Any, Any] | None = None


class _LayerFitter:
    """Fits each layer when the stream reaches it."""

    def __init__(
        self,
        sites: dict[str, Site],
        plan: Plan,
        residuals: dict[str, float],
        absorber: Absorber | None,
        *,
        factors: bool,
    ) -> None:
        self._sites = sites
        self._rewrites = {d.site: d for d in plan.decisions if d.action == "rewrite"}
        # A kept convolution is refitted only where its kernel is plain: a spectral norm would
        # rescale it afterwards. That of a narrower one is folded.
        narrower = frozenset[str]() if absorber is None else absorber.changed
        self._kept = {
            d.site
            for d in plan.decisions
            if d.action == "keep"
            and (d.norm == "fold" or sites[d.site].norm == "none" or d.site in narrower)
            and sites[d.site].custom is None
            and sites[d.site].locked is None
        }
        self._pinned = plan.keep
        self._residuals = residuals
        self._absorber = absorber
        self._factors = factors
        self._seen: set[str] = set()
        self.outcome = FitOutcome()

    def __call__(self, call: LayerCall) -> None:
        if self._absorber is not None and call.call == 0:
            self._absorb(call, self._absorber)
        if call.name in self._rewrites:
            self._rewritten(call)
        elif call.name in self._kept:
            self._refit(call)
        elif within(call.name, self._pinned):
            return
        elif isinstance(call.student, Follows):
            maps = [v for args in call.student_args + call.teacher_args for v in args]
            # The module sums in float32.
            safe = not extreme(peak([v for v in maps if isinstance(v, Tensor)]))
            if self._factors and call.call == 0 and safe:
                call.student.follow(call.student_args, call.teacher_args, call.wanted)
        elif buffers_of(call.student) is not None and call.call == 0:
            student = [a[0] for a in call.student_args]
            teacher = [a[0] for a in call.teacher_args]
            pair = correct_statistics(call.student, student, teacher)
            if pair is not None and pair[1] < pair[0]:
                self.outcome.statistics.append(call.name)

    def _absorb(self, call: LayerCall, absorber: Absorber) -> None:
        """Start a layer that lost inputs from the original's kernel, on a prediction of them."""
        made = absorber.kernel(call)
        if made is None:
            return
        weight, bias = made
        if not bool(weight.isfinite().all()):
            self.outcome.unsolved.append(call.name)
            return
        if call.name in self._rewrites:
            decision, site = self._rewrites[call.name], self._sites[call.name]
            kernel = outputs_first(weight, transposed=site.kind == "transposed")
            built = rule_named(decision.rule or "").build(site, kernel, bias, decision.rank or 1)
            as_2d(call.student).load_state_dict(built.module.state_dict())
            self._residuals[call.name] = built.residual
            return
        call.student.get_parameter("weight").copy_(weight)
        if bias is not None:
            call.student.get_parameter("bias").copy_(bias)

    def _sample(self, call: LayerCall, site: Site) -> Sample | None:
        inputs = [map_as_2d(a[0]) for a in call.student_args if a and isinstance(a[0], Tensor)]
        if len(inputs) != len(call.wanted) or len(inputs) < 2:
            return None
        wanted = [map_as_2d(y) for y in call.wanted]
        return Sample(
            inputs=inputs[1:],
            wanted=wanted[1:],
            held_input=inputs[0],
            held_wanted=wanted[0],
            centred=site.batchnorm is not None and not site.bias,
        )

    def _rewritten(self, call: LayerCall) -> None:
        decision, site = self._rewrites[call.name], self._sites[call.name]
        sample = self._sample(call, site)
        rank = int(decision.rank or 1)
        if sample is None or call.name in self._seen:
            # A shared module is fitted at its first call.
            return
        self._seen.add(call.name)
        began = time.perf_counter()
        svd, after, method = None, None, _SVD
        sample = representable(sample)
        if sample is None:
            self.outcome.unsolved.append(call.name)
        else:
            svd = sample.error(as_2d(call.student))
            if self._factors and svd > _EXACT:
                method, after = self._fitted(call, sample, decision.rule or "", svd)
        self.outcome.fits.append(
            Fit(
                site=call.name,
                rank=rank,
                residual=self._residuals.get(call.name),
                svd=svd,
                fitted=after,
                method=method if svd is not None and after is not None and after < svd else _SVD,
                seconds=time.perf_counter() - began,
            )
        )

    def _fitted(
        self, call: LayerCall, sample: Sample, rule: str, svd: float
    ) -> tuple[str, float | None]:
        """Fit a rewritten layer by its rule's method.

        Returns:
            the method, and the held-out error afterwards; the layer is restored where that rises.
        """
        module, method = as_2d(call.student), rule_named(rule).fit
        if method is None:
            return _SVD, None
        start = [p.detach().clone() for p in module.parameters()]
        if not fit_or_restore(lambda: method.run(module, sample), module, sample):
            self.outcome.unsolved.append(call.name)
            return _SVD, None
        better = (error := sample.error(module)) <= svd
        for parameter, value in zip(module.parameters(), start, strict=True):
            if not better:
                parameter.copy_(value)
        write_back(module, call.student)
        return (method.name, error) if better else (_SVD, svd)

    def _refit(self, call: LayerCall) -> None:
        site = self._sites[call.name]
        sample = self._sample(call, site)
        if not self._factors or sample is None or call.call or site.calls != 1:
            return
        conv, given = as_2d(call.student), representable(sample)
        if isinstance(conv, nn.Conv2d) and given is not None:
            before = given.error(conv)
            if before < _EXACT or not fit_or_restore(lambda: fit_dense(conv, given), conv, given):
                return
            write_back(conv, call.student)
            if given.error(conv) < before:
                self.outcome.refitted.append(call.name)


def fit_layers(
    *,
    graph: TracedGraph,
    sites: Sites,
    plan: Plan,
    teacher: nn.Module,
    student: nn.Module,
    batches: Sequence[tuple[Any, ...]],
    residuals: dict[str, float],
    factors: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    absorber: Absorber | None = None,
    student_graph: TracedGraph | None = None,
) -> FitOutcome:
    """Fit ``student`` to ``teacher`` in place.

    Args:
        graph: the teacher's operations.
        sites: its convolutions.
        plan: the plan that ``student`` was rewritten by.
        teacher: the original, float32 or float64, norms folded (it is run often).
        student: the rewritten model, of the same dtype.
        batches: arguments of forward calls; the first batch is held out.
        residuals: kernel energy lost by each rewrite, for the record.
        factors: fit the factors and refit kept convolutions; False: statistics only.
        seed: of the draws.
        progress: ``(stage, done, total, detail)``.
        absorber: of the removed channels, if the student is narrower.
        student_graph: the student's operations, if it is narrower.
    """
    by_name = {s.name: s for s in sites.holding(plan.keep).convolutions}
    fitter = _LayerFitter(by_name, plan, residuals, absorber, factors=factors)
    changed = {d.site for d in plan.decisions if d.action == "rewrite"}
    changed |= {
        s.upsample
        for s in by_name.values()
        if s.upsample is not None
        and s.name in changed
        and isinstance(student.get_submodule(s.upsample), nn.Identity)
    }
    if absorber is not None:
        changed |= absorber.changed
    # Kept convolutions and normalisations are visited once something before them has changed.
    watch = {d.site for d in plan.decisions if d.action == "keep"}
    watch |= {
        n for n, m in student.named_modules() if buffers_of(m) is not None or isinstance(m, Follows)
    }
    modes = {m: m.training for model in (teacher, student) for m in model.modules()}
    teacher.eval()
    student.eval()
    name = "fit" if factors else "statistics"
    try:
        with torch.no_grad(), torch.random.fork_rng():
            stream = ActivationStream(
                graph,
                teacher,
                student,
                batches,
                visit=fitter,
                watch=frozenset(watch),
                changed=frozenset(changed),
                student_graph=student_graph,
                selection=None if absorber is None else absorber.selection,
                budget=_BUDGET,
                positions=_POSITIONS if factors else None,
                seed=seed,
                progress=(lambda i, n, d: progress(name, i, n, d)) if progress else None,
            )
            stream.run()
            fitter.outcome.held_out = stream.held_out
    finally:
        for module, mode in modes.items():
            module.training = mode
    missed = {d.site for d in plan.decisions if d.action == "rewrite"} - {
        f.site for f in fitter.outcome.fits
    }
    missed = {m for m in missed if by_name[m].calls != 0}
    if missed and factors:
        fitter.outcome.undone.append(
            f"not fitted, since they sit inside a module that can't be traced: "
            f"{', '.join(sorted(missed))}"
        )
    if unsolved := fitter.outcome.unsolved:
        fitter.outcome.undone.append(
            "not fitted, but the SVD of the kernel, since the activations are not finite or too "
            f"large for a solution: {', '.join(unsolved)}"
        )
    return fitter.outcome
