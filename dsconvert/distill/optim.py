"""How the student's tensors move: each at a rate of its own scale, pointwise factors by Muon.

Most of a separable generator's weights are in its pointwise factors, matrices proper. Muon (Jordan
et al. 2024; ``torch.optim.Muon``) steps along the nearest orthogonal matrix of the momentum, so
that the many weak directions of a low-rank fit move as fast as the few strong ones. Everything else
(depthwise factors, normalisations, small convolutions) is moved by Adam.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.errors import UsageError

_SMALLEST = 16
"""Matrices with a side below this are left to Adam: there is little to orthogonalise."""
_LEAST_SCALE = 1e-6
_ITERATIONS = 4
"""Newton-Schulz iterations; the usual five are a fifth slower and no better here."""


def has_muon() -> bool:
    """Whether this torch comes with Muon (2.9 and newer)."""
    return hasattr(torch.optim, "Muon")


def _scale(tensor: Tensor) -> float:
    """Root mean square: what a relative step is relative to."""
    return float(tensor.detach().square().mean().sqrt().clamp_min(_LEAST_SCALE))


class Optimiser:
    """Adam, and Muon for the pointwise factors where ``muon`` is set.

    Rates are relative: a step of rate r moves a tensor by about r times its root mean square (as
    it was at the start).

    Args:
        model: whose parameters, all of them.
        betas: of Adam; the first is Muon's momentum too.
        muon: use it.

    Raises:
        UsageError: this torch has no Muon.
    """

    def __init__(self, model: nn.Module, *, betas: tuple[float, float], muon: bool) -> None:
        if muon and not has_muon():
            raise UsageError(
                f"torch {torch.__version__} has no Muon (2.9 and newer have): choose optimiser "
                "'adam', or upgrade."
            )
        pointwise = [w for w in _pointwise(model) if muon]
        matrices = {id(w) for w in pointwise}
        rest = [
            {"params": [p], "scale": _scale(p)}
            for p in model.parameters()
            if p.is_floating_point() and id(p) not in matrices
        ]
        self._pairs = [(w, _matrix(w)) for w in pointwise]
        self._all: list[torch.optim.Optimizer] = []
        if rest:
            self._all.append(torch.optim.Adam(rest, lr=0.0, betas=betas))
        if self._pairs:
            # An orthogonal O x I matrix has a root mean square of 1 / sqrt(max(O, I)).
            groups = [
                {"params": [m], "scale": _scale(m) * max(m.shape) ** 0.5} for _, m in self._pairs
            ]
            self._all.append(
                torch.optim.Muon(
                    groups,
                    lr=0.0,
                    momentum=betas[0],
                    weight_decay=0.0,
                    ns_steps=_ITERATIONS,
                )
            )

    def step(self, rate: float) -> None:
        """One step at relative rate ``rate``."""
        for weight, matrix in self._pairs:
            matrix.grad = None if weight.grad is None else weight.grad.reshape(matrix.shape)
        for optimiser in self._all:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["scale"]
            optimiser.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimiser in self._all:
            optimiser.zero_grad(set_to_none=True)
        for weight, _ in self._pairs:
            weight.grad = None

    def state(self) -> list[dict[str, Any]]:
        """As a checkpoint holds it."""
        return [o.state_dict() for o in self._all]

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Back from :meth:`state`.

        Raises:
            ValueError: the states are of other tensors.
        """
        for optimiser, state in zip(self._all, states, strict=True):
            optimiser.load_state_dict(state)


def _pointwise(model: nn.Module) -> list[nn.Parameter]:
    """Weights of plain 1x1 convolutions that are large enough, each once.

    A weight that a norm is computed from (spectral norm) is no parameter of its module's own name
    and is left to Adam.
    """
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1):
            continue
        weight = module._parameters.get("weight")
        if weight is not None and module.groups == 1 and min(weight.shape[:2]) >= _SMALLEST:
            found[id(weight)] = weight
    return list(found.values())


def _matrix(weight: nn.Parameter) -> nn.Parameter:
    """The same memory as an O x I matrix, which is what Muon takes."""
    matrix = weight.detach().reshape(weight.shape[:2]).contiguous()
    weight.data = matrix.view(weight.shape)
    return nn.Parameter(matrix)
