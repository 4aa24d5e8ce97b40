"""Apply a plan to a copy of a model: its own class, with some convolutions replaced.

Everything is checked before the first change, so a model is never half converted. The input model
does not change.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dsconvert.errors import PlanError, UsageError
from dsconvert.model.editing import carry_hooks, copied, replace
from dsconvert.model.graph import ConvTypes
from dsconvert.model.norms import effective_weight, fold, norm_kind, train_alike
from dsconvert.model.one_dimensional import Convolution, TransposedTypes, as_1d, outputs_first
from dsconvert.records import Decision, Plan, Site, Sites, within
from dsconvert.rules import Rule, rule_named


@dataclass(frozen=True, kw_only=True)
class Rewritten:
    """The rewritten copy and, for each rewritten site, the kernel energy that was lost."""

    model: nn.Module
    residuals: dict[str, float] = field(default_factory=dict)


def kernel_of(conv: Convolution) -> Tensor:
    """Return the kernel as applied, in ``(O, I, kh, kw)`` order for all kinds (ungrouped)."""
    return outputs_first(effective_weight(conv), transposed=isinstance(conv, TransposedTypes))


Matched = list[tuple[Site, Decision, Rule]]
"""The rewritten sites, each with its decision and its rule."""


def check(sites: Sites, plan: Plan) -> Matched:
    """Match a plan to a model.

    Raises:
        PlanError: the plan names convolutions that the model lacks, a rule that does not fit, or a
            rank out of range. All problems are named at once.
    """
    by_name = {s.name: s for s in sites.holding(plan.keep).convolutions}
    problems: list[str] = []
    rewrites: Matched = []
    unknown = [d.site for d in plan.decisions if d.site not in by_name]
    if unknown:
        problems.append(f"the model has no convolution called {', '.join(unknown)}")
    seen: set[str] = set()
    for decision in plan.decisions:
        if decision.site in seen:
            problems.append(f"{decision.site} is decided twice")
        seen.add(decision.site)
        if decision.action == "remove" and not within(decision.site, plan.remove):
            problems.append(f"{decision.site}: to be removed, but nothing under 'remove' holds it")
        if decision.action != "rewrite" or decision.site not in by_name:
            continue
        site = by_name[decision.site]
        if decision.rule is None or decision.rank is None:
            problems.append(f"{decision.site}: a rewrite needs a rule and a rank")
            continue
        rule = rule_named(decision.rule)
        if site.locked is not None:
            problems.append(f"{decision.site} can't be rewritten: {site.locked}")
        elif (why := rule.why_not(site)) is not None:
            problems.append(f"{decision.site}: rule {rule.name} does not fit: {why}")
        elif not 1 <= decision.rank <= rule.max_rank(site):
            problems.append(
                f"{decision.site}: rank {decision.rank} is outside 1..{rule.max_rank(site)}"
            )
        else:
            rewrites.append((site, decision, rule))
    problems += [
        f"{name} is to be removed but {sites.not_dead}"
        for name in plan.remove
        if not within(name, sites.dead)
    ]
    unknown = [name for name in plan.keep if name not in sites.modules]
    if unknown:
        problems.append(f"the model has no module called {', '.join(unknown)} to keep")
    if problems:
        raise PlanError(
            f"the plan (made for {plan.model}) does not fit this {sites.model}: "
            f"{'; '.join(problems)}. Make a new plan for this model, or mend the lines named here."
        )
    return rewrites


def costed(
    sites: Sites, plan: Plan, matched: Matched | None = None, *, original: Sites | None = None
) -> Plan:
    """Return ``plan`` with the costs of this model; a person who edits a rank does not edit them.

    Args:
        sites: at the widths of the plan.
        plan: perhaps edited.
        matched: the result of :func:`check`, if that was called already.
        original: the sites of the original, if they have other widths.

    Raises:
        PlanError: see :func:`check`.
    """
    matched = check(sites, plan) if matched is None else matched
    rules = {decision.site: rule for _, decision, rule in matched}
    by_name = {s.name: s for s in sites.convolutions}
    whole = {s.name: s for s in (original or sites).convolutions}
    decisions: list[Decision] = []
    for d in plan.decisions:
        site, rule, before = by_name[d.site], rules.get(d.site), whole[d.site]
        params, macs = site.params, site.macs
        if d.action == "remove":
            params, macs = 0, None if macs is None else 0
        elif rule is not None and d.rank is not None:
            params, macs = rule.params(site, d.rank), rule.macs(site, d.rank)
        decisions.append(
            dataclasses.replace(
                d,
                params_before=before.params,
                params_after=params,
                macs_before=before.macs,
                macs_after=macs,
            )
        )
    return dataclasses.replace(plan, decisions=tuple(decisions))


def check_finite(model: nn.Module, plan: Plan) -> None:
    """Reject weights that are not finite, unless the plan removes them.

    Raises:
        UsageError: at least one is not.
    """
    gone = tuple(f"{name}." for name in plan.remove)
    bad = [
        name
        for name, tensor in model.named_parameters()
        if not name.startswith(gone) and not bool(tensor.detach().isfinite().all())
    ]
    if bad:
        raise UsageError(
            f"{len(bad)} of the weights of this {type(model).__name__} are not finite (the first: "
            f"{bad[0]}): its training diverged, and so there are no pictures to keep. Take an "
            "earlier snapshot; where a file holds two generators, --drop the broken one."
        )


def rewrite(
    model: nn.Module,
    sites: Sites,
    plan: Plan,
    *,
    matched: Matched | None = None,
    consume: bool = False,
) -> Rewritten:
    """Apply ``plan`` to a copy of ``model``; each factor starts from the SVD of its own kernel.

    Norms are folded here; where a decision says ``norm="keep"`` they come back after the fit
    (:func:`dsconvert.core.initialise.restore_spectral_norm`). With ``consume`` the model itself is
    rewritten, and each kernel is freed as soon as its factors exist, which saves the memory of a
    copy. ``matched`` is the result of :func:`check`, if that was called already.

    Raises:
        PlanError: the plan does not fit the model.
    """
    rewrites = check(sites, plan) if matched is None else matched
    locked = {s.name for s in sites.holding(plan.keep).convolutions if s.locked is not None}
    result = model if consume else copied(model, frozenset(s.name for s, _, _ in rewrites))
    residuals: dict[str, float] = {}
    with torch.no_grad():
        for site, decision, rule in rewrites:
            conv = result.get_submodule(site.name)
            if not isinstance(conv, ConvTypes):
                raise PlanError(f"{site.name} is a {type(conv).__name__}, not a convolution.")
            kernel = kernel_of(conv)
            if not bool(kernel.isfinite().all()):
                raise UsageError(
                    f"the kernel of {site.name} is not finite as it is applied (its weights are, "
                    "so its norm divides by zero or overflows). Keep it: --keep " + site.name
                )
            # Half precision has no eigen-decomposition and little range: factor in float32.
            exact = kernel if kernel.dtype in (torch.float32, torch.float64) else kernel.float()
            built = rule.build(site, exact, conv.bias, int(decision.rank or 1))
            made = as_1d(built.module) if site.dims == 1 else built.module
            new = made.to(dtype=kernel.dtype).train(conv.training)
            train_alike(new, conv)
            carry_hooks(conv, new)
            replace(result, conv, new)
            residuals[site.name] = built.residual
            if rule.absorbs_upsample and site.upsample is not None:
                up = result.get_submodule(site.upsample)
                replace(result, up, nn.Identity().train(up.training))
        rewritten = {s.name for s, _, _ in rewrites}
        for decision in plan.decisions:
            if decision.site in rewritten | locked or decision.action == "remove":
                continue
            conv = result.get_submodule(decision.site)
            if decision.norm == "fold" and norm_kind(conv) != "none":
                fold(conv)
        for name in plan.remove:
            parent, _, child = name.rpartition(".")
            # None, not deleted: a forward may ask whether it is there (GoogLeNet's aux heads).
            setattr(result.get_submodule(parent), child, None)
    return Rewritten(model=result, residuals=residuals)
