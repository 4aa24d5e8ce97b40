"""Select one candidate for each convolution: the least loss within every budget.

A multiple-choice knapsack with several constraints: small (tens of convolutions, tens of candidates
each), solved to the optimum by HiGHS through ``scipy.optimize.milp``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dsconvert.errors import MissingExtraError
from dsconvert.search.records import Candidate
from dsconvert.util.extras import pip_install

_TIE = 1e-6
"""Losses that differ by less than this share of the largest are one: the cheaper choice is taken.
(The solver's own tolerances are of this size.)"""


def solver() -> Any:
    """Return ``scipy.optimize``.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    try:
        from scipy import optimize
    except ImportError:
        raise MissingExtraError(
            f"planning for a target needs scipy, which is not installed: {pip_install('measured')}."
        ) from None
    return optimize


def _costs(options: Sequence[Sequence[Candidate]], metric: str) -> Any:
    return np.array([c.costs[metric] for site in options for c in site], dtype=float)


def _one_each(options: Sequence[Sequence[Candidate]], extra: int) -> Any:
    """Return a row for each convolution, a column for each candidate, ``extra`` free columns."""
    rows = np.zeros((len(options), sum(len(o) for o in options) + extra))
    start = 0
    for row, site in zip(rows, options, strict=True):
        row[start : start + len(site)] = 1
        start += len(site)
    return rows


def _chosen(options: Sequence[Sequence[Candidate]], x: Any) -> tuple[int, ...]:
    chosen: list[int] = []
    start = 0
    for site in options:
        chosen.append(int(np.argmax(x[start : start + len(site)])))
        start += len(site)
    return tuple(chosen)


def least_loss(
    options: Sequence[Sequence[Candidate]], budgets: Mapping[str, float]
) -> tuple[int, ...] | None:
    """Return the index of the chosen candidate of each convolution, or None if no choice fits.

    Args:
        options: the candidates of each convolution; every one has a cost for every budget.
        budgets: by metric, the most that the chosen costs may add up to.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    optimize = solver()
    if not options:
        return () if all(b >= 0 for b in budgets.values()) else None
    if any(b < 0 for b in budgets.values()):
        return None
    loss = np.array([c.loss for site in options for c in site], dtype=float)
    loss = loss / max(float(loss.max()), 1e-12)
    price = np.zeros(len(loss))
    constraints = [optimize.LinearConstraint(_one_each(options, 0), 1, 1)]
    for metric, budget in budgets.items():
        costs = _costs(options, metric)
        largest = max(float(np.abs(costs).max()), budget, 1e-30)
        constraints.append(optimize.LinearConstraint(costs / largest, -np.inf, budget / largest))
        price += costs / largest

    def best(objective: Any) -> Any:
        found = optimize.milp(
            objective,
            constraints=constraints,
            integrality=np.ones(len(loss)),
            bounds=optimize.Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
        return found.x if found.success else None

    first = best(loss)
    if first is None:
        return None
    lost = float(loss @ np.round(first))
    constraints.append(optimize.LinearConstraint(loss, -np.inf, lost + _TIE))
    second = best(price)
    return _chosen(options, first if second is None else second)


def nearest(
    options: Sequence[Sequence[Candidate]],
    budgets: Mapping[str, float],
    fixed: Mapping[str, float],
) -> tuple[int, ...]:
    """Return the choice with the smallest worst overrun: the nearest to the targets.

    Args:
        options: as for :func:`least_loss`.
        budgets: of the whole model.
        fixed: the cost of the rest of the model.
    """
    optimize = solver()
    if not options:
        return ()
    count = sum(len(o) for o in options)
    constraints = [optimize.LinearConstraint(_one_each(options, 1), 1, 1)]
    objective = np.zeros(count + 1)
    objective[-1] = 1
    for metric, budget in budgets.items():
        # fixed + costs <= overrun * budget
        costs = _costs(options, metric)
        row = np.append(costs / budget, -1.0)
        constraints.append(optimize.LinearConstraint(row, -np.inf, -fixed[metric] / budget))
        objective[:-1] += _TIE * costs / budget
    found = optimize.milp(
        objective,
        constraints=constraints,
        integrality=np.append(np.ones(count), 0),
        bounds=optimize.Bounds(np.zeros(count + 1), np.append(np.ones(count), np.inf)),
    )
    return _chosen(options, found.x)
