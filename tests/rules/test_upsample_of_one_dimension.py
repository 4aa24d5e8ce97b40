"""Upsampling by 2 in front of a ``Conv1d``: the rules of two dimensions, with four taps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert import analyse, apply, convert, cost, plan
from dsconvert.core.merge import merge
from dsconvert.formats.restructure import describe_changes, restructure
from dsconvert.rules.recognise import structure_of


class Rising(nn.Module):
    """A small generator of sound that doubles its maps by both kinds of upsample."""

    def __init__(self) -> None:
        super().__init__()
        self.pre = nn.Conv1d(6, 12, 7, padding=3)
        self.up = nn.Upsample(scale_factor=2)
        self.mid = nn.Conv1d(12, 10, 3, padding=1)
        self.low = nn.Conv1d(10, 8, 3, padding="same")
        self.post = nn.Conv1d(8, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.mid(self.up(torch.tanh(self.pre(x)))))
        x = torch.tanh(self.low(F.interpolate(x, scale_factor=2)))
        return torch.tanh(self.post(x))


def rising() -> Rising:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Rising().eval().requires_grad_(False)


def inputs(n: int, generator: torch.Generator) -> tuple[Tensor]:
    return (F.interpolate(torch.randn(n, 6, 5, generator=generator), size=20, mode="linear"),)


X = inputs(2, torch.Generator().manual_seed(9))[0]
RULES = {"mid": "up-pw-dw", "low": "low-pw-dw"}


def test_the_presets_choose_the_rules() -> None:
    decisions = {d.site: d for d in plan(rising(), preset="fast", example_inputs=(X,)).decisions}
    assert {s: decisions[s].rule for s in RULES} == RULES
    exact = {d.site: d for d in plan(rising(), preset="exact", example_inputs=(X,)).decisions}
    assert exact["mid"].rule == "up-merge"
    assert exact["mid"].macs_after == 10 * 12 * 4 * 20


@pytest.mark.parametrize("rank", [1, 3])
def test_rank_three_is_exact_and_the_counts_are_those_of_the_model(rank: int) -> None:
    model = rising()
    chosen = plan(model, preset="fast", example_inputs=(X,))
    decisions = tuple(
        replace(d, rank=rank)
        if d.site in RULES
        else replace(d, action="keep", rule=None, rank=None)
        for d in chosen.decisions
    )
    made = apply(model, replace(chosen, decisions=decisions), init="svd", calibrate=0,
                 example_inputs=(X,))  # fmt: skip
    error = float((made.model(X) - model(X)).abs().max())
    assert (error < 1e-5) is (rank == 3)
    counted = {layer.name: layer.macs for layer in cost(made.model, (X,)).layers}
    for d in made.plan.decisions:
        assert counted[d.site] == d.macs_after, d.site
    assert isinstance(made.model.get_submodule("up"), nn.Identity)
    assert set(structure_of(made.model).rewritten) == {f"{r} rank {rank}" for r in RULES.values()}
    again = restructure(rising(), describe_changes(model, made.model))
    again.load_state_dict(made.model.state_dict())
    assert torch.equal(again.eval()(X), made.model(X))


def test_merged_exactly_and_merged_back() -> None:
    model = rising()
    merged = convert(model, preset="exact", example_inputs=(X,))
    torch.testing.assert_close(merged(X), model(X), rtol=1e-5, atol=1e-6)
    fast = convert(model, preset="fast", inputs=inputs, init="svd", calibrate=0)
    torch.testing.assert_close(merge(fast)(X), fast(X), rtol=1e-5, atol=1e-6)


def test_the_fit_lowers_the_error() -> None:
    model = rising()
    chosen = plan(model, preset="fast", inputs=inputs)
    made = apply(model, chosen, inputs=inputs, calibrate=32)
    fits = {f.site: f for f in made.fits}
    for site in RULES:
        assert fits[site].fitted is not None
        assert fits[site].fitted < fits[site].svd, site


def test_other_kernels_say_why_not() -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv1d(6, 6, 5, padding=2))
    (decision,) = plan(model, preset="exact", example_inputs=(X,)).decisions
    assert "not one of three taps" in decision.reason
    (site,) = analyse(model, example_inputs=(X,)).sites.convolutions
    assert site.upsample == "0"
