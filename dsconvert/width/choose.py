"""Choose the channels of a group that explain the others best, and measure the loss of each count.

The greedy choice is a pivoted Cholesky decomposition of the channels' second moments (Harbrecht,
Peters & Schneider 2012): each step takes the channel that explains most of what the consumers read
and the chosen channels do not explain. The order is nested, so one pass gives the loss at every
count. A channel counts by the weights that read it and, through them, by its effect on the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = 1e-12
"""A channel with a smaller share of the energy left is explained."""


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

    Args:
        readings: one for each consumer.
        total: the variance of the model's output, the unit of the loss.
    """
    left = [r.second.double().clone() for r in readings]
    read = [r.weight.double() @ s for r, s in zip(readings, left, strict=True)]
    start = [s.diagonal().clone() for s in left]
    size = len(start[0])
    loss = [_loss(read, total)]
    order: list[int] = []
    free = torch.ones(size, dtype=torch.bool)
    for _ in range(size):
        gain = torch.zeros(size, dtype=torch.float64)
        for second, product, energy in zip(left, read, start, strict=True):
            rest = second.diagonal()
            useful = rest > _TINY * energy.sum()
            score = (second * product).sum(0) / rest.clamp_min(_TINY * float(energy.sum()) + 1e-300)
            gain += torch.where(useful, score, torch.zeros_like(score))
        best = int(torch.where(free, gain, torch.full_like(gain, -1.0)).argmax())
        free[best] = False
        order.append(best)
        for i, energy in enumerate(start):
            pivot = float(left[i][best, best])
            if pivot > _TINY * float(energy.sum()):
                column = left[i][:, best] / pivot**0.5
                left[i].addr_(column, column, alpha=-1)
                read[i].addr_(read[i][:, best] / pivot**0.5, column, alpha=-1)
        loss.append(max(0.0, min(loss[-1], _loss(read, total))))
    loss[-1] = 0.0
    return Curve(tuple(order), tuple(loss))


def _loss(read: Sequence[Tensor], total: float) -> float:
    return sum(float(r.diagonal().sum()) for r in read) / max(total, 1e-300)
