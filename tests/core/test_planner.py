"""The planner by itself: budgets met, ranks where they pay, no decision that costs more."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from dsconvert_adapters import fastgan_pytorch, lightweight_gan
from torch import nn

from dsconvert.config.choices import PRESETS
from dsconvert.core.analysis import Analysis, analyse
from dsconvert.core.pipeline import plan_for
from dsconvert.core.planner import make_plan
from dsconvert.core.presets import BALANCED_RATIO, PROMISED_RATIO
from dsconvert.errors import PlanError
from dsconvert.records import Decision, Plan
from dsconvert.rules import rule_named
from tests.adapters.stylegan2_files import made
from tests.made_models import moved_generator
from tests.models import decoder, latents


def lightweight() -> nn.Module:
    return lightweight_gan.Generator(
        latent_dim=32, channels=[32, 64, 32, 32, 16], out_channels=3, gates={}, attention={},
        antialias=False,
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {
    "projected gan": lambda: moved_generator(ngf=16),
    "fastgan": lambda: fastgan_pytorch.Generator(ngf=16, nz=16, im_size=256),
    "lightweight": lightweight,
    "stylegan2": lambda: made(img_resolution=32),
    "decoder": decoder,
}


@cache
def analysis_of(name: str) -> Analysis:
    """One analysis of each architecture for all tests."""
    return analyse(MODELS[name]().eval(), inputs=latents if name == "decoder" else None)


def macs_of(analysis: Analysis, plan: Plan) -> tuple[int, int]:
    """MACs of the whole model before and after."""
    before = analysis.cost.macs
    assert before is not None
    return before, before + sum((d.macs_after or 0) - (d.macs_before or 0) for d in plan.decisions)


def rewrites(plan: Plan) -> list[Decision]:
    return [d for d in plan.decisions if d.action == "rewrite"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["projected gan", "fastgan", "lightweight"])
def test_balanced_meets_its_budget(name: str) -> None:
    analysis = analysis_of(name)
    plan = plan_for(analysis, preset="balanced")
    before, after = macs_of(analysis, plan)
    assert before / after >= PROMISED_RATIO
    assert plan.note is None


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_balanced_meets_its_budget_or_names_the_layers_that_prevent_it(name: str) -> None:
    analysis = analysis_of(name)
    plan = plan_for(analysis, preset="balanced")
    before, after = macs_of(analysis, plan)
    assert (plan.note is None) == (before / after >= PROMISED_RATIO)
    if plan.note is not None:
        # As far as it goes: every rewrite is at its lowest rank, or spends nothing extra.
        assert all(d.rank == 1 for d in rewrites(plan))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("preset", PRESETS)
def test_no_rewrite_raises_the_cost(name: str, preset: str) -> None:
    plan = plan_for(analysis_of(name), preset=preset)
    for d in plan.decisions:
        assert d.macs_before is not None
        assert d.macs_after is not None
        cheaper = d.macs_after < d.macs_before or d.params_after < d.params_before
        assert cheaper if d.action == "rewrite" else d.macs_after <= d.macs_before, d
    before, after = macs_of(analysis_of(name), plan)
    assert after <= before


@pytest.mark.parametrize("name", ["projected gan", "fastgan", "lightweight"])
def test_balanced_spends_all_that_the_budget_allows(name: str) -> None:
    """One rank more, anywhere, would be over the budget, beyond exact, or cheaper dense."""
    analysis = analysis_of(name)
    plan = plan_for(analysis, preset="balanced")
    before, after = macs_of(analysis, plan)
    sites = {s.name: s for s in analysis.sites.convolutions}
    for d in rewrites(plan):
        rule, site, rank = rule_named(d.rule or ""), sites[d.site], (d.rank or 0) + 1
        if rank > rule.max_rank(site):
            continue
        more = rule.macs(site, rank)
        assert more is not None
        over = after - (d.macs_after or 0) + more > before / BALANCED_RATIO
        assert over or more >= (d.macs_before or 0), d


@pytest.mark.parametrize("name", ["projected gan", "fastgan"])
def test_ranks_are_spent_where_they_pay(name: str) -> None:
    """Near the image, and where the pointwise runs before the growth."""
    analysis = analysis_of(name)
    plan = plan_for(analysis, preset="balanced")
    order = [n for n in analysis.sites.order if n in {d.site for d in rewrites(plan)}]
    ranks = {d.site: d.rank or 0 for d in rewrites(plan)}
    assert ranks[order[-1]] >= ranks[order[0]]
    half = len(order) // 2
    late, early = order[half:], order[:half]
    assert sum(ranks[n] for n in late) / len(late) >= sum(ranks[n] for n in early) / len(early)
    upsampled = {s.name for s in analysis.sites.convolutions if s.upsample is not None}
    assert {d.rule for d in rewrites(plan) if d.site in upsampled} == {"up-pw-dw"}


@pytest.mark.parametrize("name", MODELS)
def test_a_fixed_rank_is_clipped_to_the_exact_one(name: str) -> None:
    analysis = analysis_of(name)
    sites = {s.name: s for s in analysis.sites.convolutions}
    for rank in (1, 3, 100):
        for d in rewrites(plan_for(analysis, preset="paper", rank=rank)):
            assert d.rank == min(rank, rule_named(d.rule or "").max_rank(sites[d.site]))


@pytest.mark.parametrize("name", MODELS)
def test_every_convolution_is_decided_once(name: str) -> None:
    analysis = analysis_of(name)
    for preset in PRESETS:
        plan = plan_for(analysis, preset=preset)
        assert [d.site for d in plan.decisions] == [s.name for s in analysis.sites.convolutions]
        assert all(d.reason for d in plan.decisions)


def test_what_is_asked_for_must_make_sense() -> None:
    sites = analysis_of("decoder").sites
    with pytest.raises(PlanError, match="no preset is called 'best'"):
        make_plan(sites, preset="best")
    with pytest.raises(PlanError, match="rank 0 is below 1"):
        make_plan(sites, rank=0)
    with pytest.raises(PlanError, match="has no rank to choose"):
        make_plan(sites, preset="exact", rank=2)
