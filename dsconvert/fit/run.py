"""Fit a rewritten model to its original, layer by layer, in one pass through the graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.adapter import Follows
from dsconvert.fit.blueprint import fit_pointwise_depthwise
from dsconvert.fit.guard import attempt, extreme, peak, ready
from dsconvert.fit.least_squares import fit_dense, fit_depthwise_pointwise
from dsconvert.fit.sample import Sample
from dsconvert.fit.statistics import buffers_of, restate
from dsconvert.fit.stream import Front, Stream
from dsconvert.model.graph import TracedGraph
from dsconvert.records import Fit, Plan, Site, Trace, within
from dsconvert.rules import rule_named

Progress = Callable[[str, int, int, str], None]

BATCH = 4
DEFAULT_LATENTS = 768
"""Enough: held-out errors hardly fall beyond; large maps use fewer by themselves."""
_BUDGET = 512 << 20
"""Bytes of one node's output on one side; two or three nodes and both sides are alive at once."""


@dataclass
class Outcome:
    """What was measured on the way."""

    fits: list[Fit] = field(default_factory=list)
    restated: list[str] = field(default_factory=list)
    refitted: list[str] = field(default_factory=list)
    unsolved: list[str] = field(default_factory=list)
    """Layers that keep the SVD of their kernel, since nothing else is finite."""
    notes: list[str] = field(default_factory=list)
    held_out: tuple[Any, Any] | None = None
    """What student and teacher return for the held-out batch."""


class _Visitor:
    def __init__(
        self, sites: dict[str, Site], plan: Plan, residuals: dict[str, float], *, factors: bool
    ) -> None:
        self._sites = sites
        self._rewrites = {d.site: d for d in plan.decisions if d.action == "rewrite"}
        # A kept convolution is refitted only where its kernel is plain: a spectral norm would
        # rescale it afterwards.
        self._kept = {
            d.site
            for d in plan.decisions
            if d.action == "keep"
            and (d.norm == "fold" or sites[d.site].norm == "none")
            and sites[d.site].custom is None
            and sites[d.site].locked is None
        }
        self._pinned = plan.keep
        self._residuals = residuals
        self._factors = factors
        self._seen: set[str] = set()
        self.outcome = Outcome()

    def __call__(self, front: Front) -> None:
        if front.name in self._rewrites:
            self._rewritten(front)
        elif front.name in self._kept:
            self._refit(front)
        elif within(front.name, self._pinned):
            return
        elif isinstance(front.student, Follows):
            maps = [v for call in front.student_args + front.teacher_args for v in call]
            # Its own sums are in float32.
            safe = not extreme(peak([v for v in maps if isinstance(v, Tensor)]))
            if self._factors and front.call == 0 and safe:
                front.student.follow(front.student_args, front.teacher_args, front.wanted)
        elif buffers_of(front.student) is not None and front.call == 0:
            student = [a[0] for a in front.student_args]
            teacher = [a[0] for a in front.teacher_args]
            pair = restate(front.student, student, teacher)
            if pair is not None and pair[1] < pair[0]:
                self.outcome.restated.append(front.name)

    def _sample(self, front: Front, site: Site) -> Sample | None:
        inputs = [a[0] for a in front.student_args if a and isinstance(a[0], Tensor)]
        if len(inputs) != len(front.wanted) or len(inputs) < 2:
            return None
        return Sample(
            inputs=inputs[1:],
            wanted=front.wanted[1:],
            held_input=inputs[0],
            held_wanted=front.wanted[0],
            centred=site.batchnorm is not None and not site.bias,
        )

    def _rewritten(self, front: Front) -> None:
        decision, site = self._rewrites[front.name], self._sites[front.name]
        sample = self._sample(front, site)
        rank = int(decision.rank or 1)
        residual = self._residuals.get(front.name)
        if sample is None:
            return
        if front.name in self._seen:
            # A shared module is fitted where it is first called.
            return
        self._seen.add(front.name)
        began = time.perf_counter()
        svd, after, method = None, None, "SVD"
        sample = ready(sample)
        if sample is None:
            self.outcome.unsolved.append(front.name)
        else:
            svd = sample.error(front.student)
            # Exact ones have nothing to gain.
            if self._factors and svd > 1e-9:
                method, after = self._fitted(front, sample, rule_named(decision.rule or "").order)
        self.outcome.fits.append(
            Fit(
                site=front.name,
                rank=rank,
                residual=residual,
                svd=svd,
                fitted=after,
                method=method if svd is not None and after is not None and after < svd else "SVD",
                seconds=time.perf_counter() - began,
            )
        )

    def _fitted(self, front: Front, sample: Sample, order: str) -> tuple[str, float | None]:
        """Fit a rewritten layer; the method, and the held-out error afterwards."""
        pair = front.student
        fits = {
            "dw-pw": (fit_depthwise_pointwise, "least squares"),
            "pw-dw": (fit_pointwise_depthwise, "moments"),
        }
        if order not in fits or not isinstance(pair, nn.Sequential):
            return "SVD", None
        fit, method = fits[order]
        if not attempt(lambda: fit(pair, sample), pair, sample):
            self.outcome.unsolved.append(front.name)
            return "SVD", None
        return method, sample.error(pair)

    def _refit(self, front: Front) -> None:
        site = self._sites[front.name]
        sample = self._sample(front, site)
        if not self._factors or sample is None or front.call or site.calls != 1:
            return
        conv, given = front.student, ready(sample)
        if isinstance(conv, nn.Conv2d) and given is not None:
            before = given.error(conv)
            if before < 1e-9 or not attempt(lambda: fit_dense(conv, given), conv, given):
                return
            if given.error(conv) < before:
                self.outcome.refitted.append(front.name)


def run(
    *,
    recorded: TracedGraph,
    trace: Trace,
    plan: Plan,
    teacher: nn.Module,
    student: nn.Module,
    batches: Sequence[tuple[Any, ...]],
    residuals: dict[str, float],
    factors: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Fit ``student`` to ``teacher`` in place.

    Args:
        recorded: the teacher's graph, from :func:`dsconvert.model.trace.trace`.
        trace: its trace.
        plan: the plan that ``student`` was rewritten by.
        teacher: the original, float32 or float64, norms folded (it is run often).
        student: the rewritten model, of the same dtype.
        batches: arguments of forward calls; the first batch is held out.
        residuals: kernel energy lost by each rewrite, for the record.
        factors: fit the factors and refit kept convolutions; False: statistics only.
        seed: of the draws.
        progress: ``(stage, done, total, detail)``.
    """
    sites = {s.name: s for s in trace.holding(plan.keep).sites}
    visitor = _Visitor(sites, plan, residuals, factors=factors)
    changed = {d.site for d in plan.decisions if d.action == "rewrite"}
    changed |= {
        s.upsample
        for s in sites.values()
        if s.upsample is not None
        and s.name in changed
        and isinstance(student.get_submodule(s.upsample), nn.Identity)
    }
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
            stream = Stream(
                recorded,
                teacher,
                student,
                batches,
                visit=visitor,
                watch=frozenset(watch),
                changed=frozenset(changed),
                budget=_BUDGET,
                seed=seed,
                progress=(lambda i, n, d: progress(name, i, n, d)) if progress else None,
            )
            stream.run()
            visitor.outcome.held_out = stream.held_out
    finally:
        for module, mode in modes.items():
            module.training = mode
    missed = changed & set(sites) - {f.site for f in visitor.outcome.fits}
    missed = {m for m in missed if sites[m].calls != 0}
    if missed and factors:
        visitor.outcome.notes.append(
            f"not fitted, since they sit inside a module that can't be traced: "
            f"{', '.join(sorted(missed))}"
        )
    if unsolved := visitor.outcome.unsolved:
        visitor.outcome.notes.append(
            "not fitted, but the SVD of the kernel, since the activations are not finite or too "
            f"large for a solution: {', '.join(unsolved)}"
        )
    return visitor.outcome
