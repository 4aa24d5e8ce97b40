"""Predict the teacher's map from a student's map that has other channels.

A narrower block has no channel-by-channel counterpart in the teacher. It is held to the teacher's
block by an affine read-out of its map, ``y = M^T x + b`` at each position: the least-squares
solution, which is not a part of the student. The error that remains is the part of the teacher's
map that no 1x1 convolution behind the student's map could supply. (FitNets, Romero et al. 2015,
train such a regressor; here it is solved in closed form.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsconvert.fit.least_squares import ridge_towards
from dsconvert.fit.overflow import NotFiniteError
from dsconvert.fit.positions import position_step

RIDGE = 1e-3
"""Of the least squares, as a share of the mean variance of the student's channels."""
_POSITIONS = 16_384
"""Positions of one batch that enter the moments, about."""
_MEMORY = 32
"""Batches after which the weight of an earlier batch has fallen to 1/e during training."""


class PairMoments:
    """Sums of first and second moments of a student's map x and a teacher's map y, in float64.

    Args:
        student: channels of x.
        teacher: channels of y.
        device: of the maps.
    """

    def __init__(self, student: int, teacher: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self._sums = {
            "n": zeros(),
            "x": zeros(student),
            "y": zeros(teacher),
            "xx": zeros(student, student),
            "xy": zeros(student, teacher),
            "yy": zeros(teacher),
        }

    @torch.no_grad()
    def add(self, student: Tensor, teacher: Tensor, *, keep: float = 1.0) -> None:
        """Add one batch, of maps (N, C, H, W) that differ in C alone; earlier sums count ``keep``.

        Of large maps a regular subset of the positions is used.
        """
        x, y = (v.detach().permute(0, 2, 3, 1).flatten(0, 2) for v in (student, teacher))
        step = position_step(len(x), _POSITIONS, len(x) // len(student))
        x, y = x[::step].double(), y[::step].double()
        new = {
            "n": torch.tensor(float(len(x)), dtype=torch.float64, device=x.device),
            "x": x.sum(0),
            "y": y.sum(0),
            "xx": x.T @ x,
            "xy": x.T @ y,
            "yy": y.square().sum(0),
        }
        for name, value in new.items():
            self._sums[name].mul_(keep).add_(value)

    def _centred(self) -> tuple[Tensor, Tensor, Tensor]:
        s = self._sums
        n = s["n"]
        x, y = s["x"] / n, s["y"] / n
        return (
            s["xx"] / n - torch.outer(x, x),
            s["xy"] / n - torch.outer(x, y),
            s["yy"] / n - y.square(),
        )

    @torch.no_grad()
    def solve(self) -> tuple[Tensor, Tensor]:
        """Return M (channels of x, channels of y) and b (channels of y) in float64.

        Raises:
            NotFiniteError: the maps are not finite.
        """
        xx, xy, _ = self._centred()
        matrix = ridge_towards(torch.zeros_like(xy), xx, xy, RIDGE)
        n = self._sums["n"]
        return matrix, (self._sums["y"] - matrix.T @ self._sums["x"]) / n

    @torch.no_grad()
    def unexplained(self, scale: Tensor) -> float:
        """Return the mean over channels of ``E|y - M^T x - b|^2 / scale`` of the batches added.

        Args:
            scale: the teacher's variances, as many numbers as channels of y.

        Returns:
            infinity if the maps are not finite.
        """
        xx, xy, yy = self._centred()
        try:
            matrix = ridge_towards(torch.zeros_like(xy), xx, xy, RIDGE)
        except NotFiniteError:
            return math.inf
        left = yy - 2 * (matrix * xy).sum(0) + (matrix * (xx @ matrix)).sum(0)
        return float((left.clamp_min(0) / scale.flatten().double()).mean())

    def state(self) -> dict[str, Tensor]:
        """Return the sums for a checkpoint."""
        return dict(self._sums)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load the sums of :meth:`state`, which may be on another device."""
        self._sums = {
            name: state[name].to(old.device, copy=True) for name, old in self._sums.items()
        }


class ReadOut:
    """The read-out of one block: :meth:`follow` the student, :meth:`solve` now and then.

    Args:
        student: channels of the student's map.
        teacher: channels of the teacher's map.
        device: of the maps.
    """

    def __init__(self, student: int, teacher: int, device: torch.device) -> None:
        self._channels = (student, teacher)
        self._device = device
        self.moments = PairMoments(student, teacher, device)
        self._weight = torch.zeros(teacher, student, 1, 1, device=device)
        self._bias = torch.zeros(teacher, device=device)

    def __call__(self, student: Tensor) -> Tensor:
        """Return the predicted map of the teacher; gradients flow to ``student``."""
        return F.conv2d(student, self._weight, self._bias)

    def follow(self, student: Tensor, teacher: Tensor) -> None:
        """Take a training batch into account; the weight of earlier ones decays."""
        self.moments.add(student, teacher, keep=1 - 1 / _MEMORY)

    def solve(self) -> None:
        """Solve for the matrix from the batches so far; keep the old one if they are not finite."""
        try:
            matrix, bias = self.moments.solve()
        except NotFiniteError:
            return
        self._weight = matrix.T.float()[:, :, None, None].contiguous()
        self._bias = bias.float()

    def fresh(self) -> PairMoments:
        """Return empty moments of the same channels."""
        return PairMoments(*self._channels, self._device)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"moments": self.moments.state(), "weight": self._weight, "bias": self._bias}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load the state of :meth:`state`."""
        self.moments.restore(state["moments"])
        self._weight = state["weight"].to(self._device)
        self._bias = state["bias"].to(self._device)
