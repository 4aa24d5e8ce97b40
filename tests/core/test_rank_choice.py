"""Ranks by loss within a budget."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsconvert import analyse, plan
from dsconvert.core.rank_choice import Option, least_loss_ranks
from dsconvert.core.rank_losses import rank_losses

LAYERS: list[list[Option]] = [
    [(1, 10, 0.9), (2, 20, 0.3), (None, 30, 0.0)],
    [(1, 10, 0.2), (2, 20, 0.1), (None, 30, 0.0)],
    [(1, 10, 5.0), (2, 20, 4.9), (3, 25, 0.1), (None, 60, 0.0)],
]


def total(chosen: tuple[int | None, ...]) -> tuple[int, float]:
    picked = [next(o for o in own if o[0] == r) for own, r in zip(LAYERS, chosen, strict=True)]
    return sum(o[1] for o in picked), sum(o[2] for o in picked)


def test_the_layer_that_loses_most_for_its_cost_gets_the_ranks() -> None:
    # The third layer gains from its third rank alone, which is reached past its second.
    assert least_loss_ranks(LAYERS, 45) == (1, 1, 3)
    assert least_loss_ranks(LAYERS, 55) == (2, 1, 3)
    assert least_loss_ranks(LAYERS, 1000) == (None, None, None)


def test_a_budget_is_kept_where_it_can_be() -> None:
    assert least_loss_ranks(LAYERS, 5) == (1, 1, 1)
    for budget in range(30, 121, 5):
        macs, loss = total(least_loss_ranks(LAYERS, budget))
        assert macs <= budget
        every = product(*([o[0] for o in own] for own in LAYERS))
        best = min(total(c)[1] for c in every if total(c)[0] <= budget)
        assert loss <= best + 0.61  # at most the last change behind the optimum


class Pictures:
    """A sampler of smooth pictures, with the mark of those that are given."""

    values = "unit"

    def __call__(self, n: int, generator: torch.Generator) -> tuple[Tensor]:
        coarse = torch.rand(n, 3, 4, 4, generator=generator)
        return (F.interpolate(coarse, (12, 12), mode="bicubic"),)


def enlarger() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wide = nn.Conv2d(8, 16, 3, padding=1)
        with torch.no_grad():
            # A kernel that one rank holds, beside one that it does not.
            wide.weight.copy_(wide.weight[:, :, 1:2, 1:2] * torch.rand(3, 3))
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), wide, nn.ReLU(), nn.Upsample(scale_factor=2),
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1),
        ).eval()  # fmt: skip


def test_losses_are_measured_where_pictures_are_given() -> None:
    analysis = analyse(enlarger(), inputs=Pictures())
    losses = rank_losses(analysis)
    assert set(losses) == {"0", "2", "5", "7"}
    assert losses["2"][1] < 1e-3 * losses["5"][1]
    for name in ("0", "5"):
        assert losses[name][max(losses[name])] < losses[name][1]
    decisions = {d.site: d for d in plan(enlarger(), inputs=Pictures()).decisions}
    assert decisions["2"].rank == 1
    assert decisions["2"].reason == "rank chosen by measured loss and cost"


def test_without_pictures_nothing_is_measured() -> None:
    analysis = analyse(enlarger(), inputs=lambda n, g: Pictures()(n, g))
    assert rank_losses(analysis) == {}
    assert rank_losses(analyse(enlarger())) == {}
