"""Ranks by loss within a budget."""

from __future__ import annotations

from itertools import product

from dsconvert.core.rank_choice import Option, least_loss_ranks

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
