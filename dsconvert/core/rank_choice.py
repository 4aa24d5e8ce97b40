"""Choose a rank for each convolution: the least sum of losses within a budget of MACs."""

from __future__ import annotations

from collections.abc import Sequence

Option = tuple[int | None, int, float]
"""Rank (None: dense), MACs, loss."""


def least_loss_ranks(options: Sequence[Sequence[Option]], budget: float) -> tuple[int | None, ...]:
    """Return the rank of each convolution.

    All begin with their cheapest option. Then the change that lowers the loss by most for each
    multiply-accumulate is made, as long as one fits into the budget. (On the convex hull of each
    convolution's options this greedy order is optimal but for the last change; Shoham and Gersho
    1988, "Efficient bit allocation for an arbitrary set of quantizers".)

    Args:
        options: of each convolution, at least one.
        budget: the most that all of them may cost; below the cheapest choice: that choice.
    """
    chosen = [min(own, key=lambda o: (o[1], o[2])) for own in options]
    left = budget - sum(o[1] for o in chosen)
    while True:
        best: tuple[float, int, Option] | None = None
        for i, own in enumerate(options):
            _, macs, loss = chosen[i]
            for option in own:
                more, gain = option[1] - macs, loss - option[2]
                if gain <= 0 or more > left:
                    continue
                rate = gain / max(more, 1)
                if best is None or rate > best[0]:
                    best = (rate, i, option)
        if best is None:
            return tuple(o[0] for o in chosen)
        _, i, option = best
        left -= option[1] - chosen[i][1]
        chosen[i] = option
