"""The optimiser of the student: rates relative to each tensor, pointwise factors by Muon.

Most weights of a separable generator are in its pointwise factors, which are matrices. Muon (Jordan
et al. 2024; ``torch.optim.Muon``) steps along the nearest orthogonal matrix of the momentum, so
that the many weak directions of a low-rank fit move as fast as the few strong ones. Adam updates
all other tensors (depthwise factors, normalisations, small convolutions).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.errors import UsageError

_SMALLEST = 16
"""Adam updates matrices with a side below this: there is little to orthogonalise."""
_LEAST_SCALE = 1e-6
_ITERATIONS = 4
"""Newton-Schulz iterations; the default of five is a fifth slower and no better here."""


def has_muon() -> bool:
    """Return whether this torch has Muon (2.9 and newer)."""
    return hasattr(torch.optim, "Muon")


def _scale(tensor: Tensor) -> float:
    """Return the root mean square, which a relative step is relative to."""
    return float(tensor.detach().square().mean().sqrt().clamp_min(_LEAST_SCALE))


class Optimiser:
    """Adam, with Muon for the pointwise factors if ``muon`` is set.

    Rates are relative: a step of rate r changes a tensor by about r times its initial root mean
    square.

    Args:
        model: its parameters that require gradients are trained.
        betas: of Adam; the first is also the momentum of Muon.
        muon: whether to use Muon.

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
            if p.is_floating_point() and p.requires_grad and id(p) not in matrices
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
        """Make one step at relative rate ``rate``."""
        for weight, matrix in self._pairs:
            matrix.grad = None if weight.grad is None else weight.grad.reshape(matrix.shape)
        for optimiser in self._all:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["scale"]
            optimiser.step()

    def zero_grad(self) -> None:
        """Delete the gradients."""
        for optimiser in self._all:
            optimiser.zero_grad(set_to_none=True)
        for weight, _ in self._pairs:
            weight.grad = None

    def state(self) -> list[dict[str, Any]]:
        """Return the state for a checkpoint."""
        return [o.state_dict() for o in self._all]

    def restore(self, states: list[dict[str, Any]]) -> None:
        """Load the state of :meth:`state`.

        Raises:
            ValueError: the states are of other tensors.
        """
        for optimiser, state in zip(self._all, states, strict=True):
            optimiser.load_state_dict(state)


def _pointwise(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained weights of plain 1x1 convolutions that are large enough, each once.

    A convolution with spectral norm has no parameter of the name ``weight``; Adam updates it.
    """
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.Conv1d) or max(module.kernel_size) != 1:
            continue
        weight = module._parameters.get("weight")
        if weight is None or not weight.requires_grad:
            continue
        if module.groups == 1 and min(weight.shape[:2]) >= _SMALLEST:
            found[id(weight)] = weight
    return list(found.values())


def _matrix(weight: nn.Parameter) -> nn.Parameter:
    """Return the same memory as an O x I matrix, the form that Muon needs."""
    matrix = weight.detach().reshape(weight.shape[:2]).contiguous()
    weight.data = matrix.view(weight.shape)
    return nn.Parameter(matrix)
