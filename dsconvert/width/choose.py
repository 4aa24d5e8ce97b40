"""Choose the channels of a group that explain the others best, and measure the loss of each count.

The greedy choice is a pivoted Cholesky decomposition of the channels' second moments (Harbrecht,
Peters & Schneider 2012): each step takes the channel that explains most of what the consumers read
and the chosen channels do not explain. The order is nested, so one pass gives the loss at every
count. A channel counts by the weights that read it and, through them, by its effect on the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = 1e-12
"""A channel with a smaller share of the energy left is explained."""
_BLOCKS = 128
"""Number of blocks of a large group; a smaller group is chosen one by one."""
_CANDIDATES = 4
"""Candidates of a block for each unit that it takes."""


@dataclass(frozen=True, eq=False)
class Reading:
    """The channels of a group as one consumer reads them.

    Attributes:
        second: second moments of the units, ``(m, m)``.
        weight: ``sum_o w_o W[o, i] W[o, j]`` over outputs and taps, ``(m, m)``: the squared error
            that an error of the units causes at the model's output.
    """

    second: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class Curve:
    """The units of one group in the order of choice, and the loss at every count.

    Attributes:
        order: indices of units; the first k are the choice of k units.
        loss: ``loss[k]``: the squared error at the model's output, as a share of its variance,
            where k units are kept and the consumers predict the others by least squares (to first
            order, errors at different places taken as independent). ``loss[m]`` is 0.
    """

    order: tuple[int, ...]
    loss: tuple[float, ...]


def choose(readings: Sequence[Reading], total: float) -> Curve:
    """Return the greedy order of a group's units and its losses.

    Large groups are chosen block by block: the next units come from the candidates with the largest
    scores, whose columns alone are updated within a block.

    Args:
        readings: one for each consumer.
        total: the variance of the model's output, the unit of the loss.
    """
    sides = [_Side(r) for r in readings]
    size = len(sides[0].left)
    loss = [_loss(sides, total)]
    order: list[int] = []
    free = torch.ones(size, dtype=torch.bool, device="cpu")
    block = max(1, size // _BLOCKS)
    while len(order) < size:
        scores = _sum(s.scores() for s in sides).masked_fill(~free, -1)
        count = min(block, size - len(order))
        candidates = scores.topk(min(_CANDIDATES * count, int(free.sum()))).indices
        chosen = _within(sides, candidates, count)
        # The loss between the first and the last unit of a block is interpolated.
        before = loss[-1]
        for side in sides:
            side.apply()
        after = max(0.0, min(before, _loss(sides, total)))
        loss += [before + (after - before) * (i + 1) / len(chosen) for i in range(len(chosen))]
        order += chosen
        free[chosen] = False
    loss[-1] = 0.0
    return Curve(tuple(order), tuple(loss))


class _Side:
    """The channels of a group as one consumer reads them, without those that are explained.

    ``left`` is the covariance S that the chosen units do not explain, ``read`` is Q S with the
    consumer's weights Q.
    """

    def __init__(self, reading: Reading) -> None:
        self.left = reading.second.double().clone()
        self.read = reading.weight.double() @ self.left
        self.floor = _TINY * float(self.left.diagonal().sum()) + 1e-300
        self._pivots: list[Tensor] = []
        self._products: list[Tensor] = []

    def scores(self) -> Tensor:
        """Return the part of the loss that each unit would remove."""
        return _scores(self.left, self.read, self.left.diagonal(), self.floor)

    def columns(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """Return the columns of some units, as copies."""
        return self.left[:, units], self.read[:, units]

    def remember(self, column: Tensor, product: Tensor) -> None:
        """Take one pivot (its column over the root of its own entry) for :meth:`apply`."""
        self._pivots.append(column)
        self._products.append(product)

    def apply(self) -> None:
        """Remove what the remembered pivots explain."""
        if self._pivots:
            pivots, products = torch.stack(self._pivots, 1), torch.stack(self._products, 1)
            self.left.addmm_(pivots, pivots.t(), alpha=-1)
            self.read.addmm_(products, pivots.t(), alpha=-1)
        self._pivots, self._products = [], []


def _within(sides: Sequence[_Side], candidates: Tensor, count: int) -> list[int]:
    """Choose ``count`` of the candidates one after the other."""
    slabs = [list(s.columns(candidates)) for s in sides]
    taken: list[int] = []
    open_ = torch.ones(len(candidates), dtype=torch.bool, device="cpu")
    for _ in range(count):
        gains = _sum(
            _scores(left, read, left[candidates, range(len(candidates))], side.floor)
            for side, (left, read) in zip(sides, slabs, strict=True)
        )
        best = int(gains.masked_fill(~open_, -1).argmax())
        open_[best] = False
        unit = int(candidates[best])
        taken.append(unit)
        for side, (left, read) in zip(sides, slabs, strict=True):
            pivot = float(left[unit, best])
            if pivot > side.floor:
                column, product = left[:, best] / pivot**0.5, read[:, best] / pivot**0.5
                side.remember(column, product)
                row = column[candidates]
                left.addr_(column, row, alpha=-1)
                read.addr_(product, row, alpha=-1)
    return taken


def _scores(left: Tensor, read: Tensor, own: Tensor, floor: float) -> Tensor:
    score = (left * read).sum(0) / own.clamp_min(floor)
    return torch.where(own > floor, score, torch.zeros_like(score))


def _sum(scores: Iterable[Tensor]) -> Tensor:
    first, *others = scores
    return sum(others, first)


def _loss(sides: Sequence[_Side], total: float) -> float:
    return sum(float(s.read.diagonal().sum()) for s in sides) / max(total, 1e-300)
