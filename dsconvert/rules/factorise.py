"""Factor a dense kernel into separable factors, and compose it from them.

Kernels here are ``(O, I, kh, kw)`` in the order of ``nn.Conv2d``; a transposed convolution's
``(I, O, kh, kw)`` is permuted by its rule before and after.

*dw -> pw* (Guo et al. 2018, "Network Decoupling"; the order of Faster Projected GAN): for every
input channel ``i`` the matrix ``W[:, i]`` of shape ``(O, k^2)`` is cut to rank R: R spatial filters
an input channel (depthwise, multiplier R), then a pointwise ``I R -> O``.

*pw -> dw* ("blueprint" order, Haase & Amthor 2020, BSConv): for every output channel ``o`` the
matrix ``W[o]`` of shape ``(I, k^2)`` is cut to rank R: a pointwise ``I -> O R``, then a depthwise
filter per output channel.

Each is optimal at its rank (Eckart & Young 1936) and exact at R = k^2. The small ``k^2 x k^2`` Gram
matrix has the wanted right singular vectors as eigenvectors, so no large SVD is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """Separable factors of one kernel.

    ``pointwise`` is ``(O, I R)`` for dw -> pw and ``(O, R, I)`` for pw -> dw; ``depthwise`` is
    ``(I, R, kh, kw)`` and ``(O, R, kh, kw)``. ``residual`` is the share of the kernel's energy
    that is lost, ``||W - W'||^2 / ||W||^2``.
    """

    depthwise: Tensor
    pointwise: Tensor
    residual: float


def _unit(rows: Tensor) -> float:
    """Return a divisor that brings a kernel's squares into range: 1 for a usual kernel."""
    low, high = torch.aminmax(rows)
    peak = max(-float(low), float(high))
    return peak if peak and not 1e-12 < peak < 1e12 else 1.0


def _leading(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the rank-R cut of a batch of ``(n, m, k)`` matrices.

    The factors are ``(n, m, R)`` and orthonormal ``(n, R, k)``.

    The two sides share the scale evenly, which keeps half precision and training well behaved.
    """
    gram = rows.transpose(1, 2) @ rows
    # eigh sorts upwards; double precision costs nothing at k^2 x k^2.
    _, vectors = torch.linalg.eigh(gram.double())
    basis = vectors[:, :, -rank:].flip(-1).to(rows.dtype)
    left = rows @ basis
    scale = left.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny).sqrt()
    return left / scale, (basis * scale).transpose(1, 2)


def _residual(rows: Tensor, left: Tensor, right: Tensor) -> float:
    total = rows.square().sum(dtype=torch.float64)
    if total == 0:
        return 0.0
    # The cut is an orthogonal projection, so energies subtract.
    kept = (left.square().sum(1) * right.square().sum(2)).sum(dtype=torch.float64)
    return float(((total - kept) / total).clamp(0, 1))


def depthwise_pointwise(kernel: Tensor, rank: int) -> Factors:
    """Cut ``kernel (O, I, kh, kw)`` to depthwise ``(I, R, kh, kw)`` -> pointwise ``(O, I R)``."""
    out, inp, kh, kw = kernel.shape
    rows = kernel.reshape(out, inp, kh * kw).transpose(0, 1)
    unit = _unit(rows)
    rows = rows / unit if unit != 1.0 else rows
    left, right = _leading(rows, rank)
    residual = _residual(rows, left, right)
    if unit != 1.0:
        left, right = left * unit**0.5, right * unit**0.5
    return Factors(
        depthwise=right.reshape(inp, rank, kh, kw).contiguous(),
        pointwise=left.transpose(1, 2).reshape(inp * rank, out).t().contiguous(),
        residual=residual,
    )


def pointwise_depthwise(kernel: Tensor, rank: int) -> Factors:
    """Cut ``kernel (O, I, kh, kw)`` to pointwise ``(O, R, I)`` -> depthwise ``(O, R, kh, kw)``."""
    out, inp, kh, kw = kernel.shape
    rows = kernel.reshape(out, inp, kh * kw)
    unit = _unit(rows)
    rows = rows / unit if unit != 1.0 else rows
    left, right = _leading(rows, rank)
    residual = _residual(rows, left, right)
    if unit != 1.0:
        left, right = left * unit**0.5, right * unit**0.5
    return Factors(
        depthwise=right.reshape(out, rank, kh, kw).contiguous(),
        pointwise=left.transpose(1, 2).contiguous(),
        residual=residual,
    )


def compose_depthwise_pointwise(depthwise: Tensor, pointwise: Tensor) -> Tensor:
    """Return the dense ``(O, I, kh, kw)`` kernel of a dw -> pw pair (the inverse of the cut)."""
    inp, rank = depthwise.shape[:2]
    return torch.einsum("oir,irhw->oihw", pointwise.reshape(-1, inp, rank), depthwise)


def compose_pointwise_depthwise(pointwise: Tensor, depthwise: Tensor) -> Tensor:
    """Return the dense ``(O, I, kh, kw)`` kernel of a pw -> dw pair."""
    return torch.einsum("ori,orhw->oihw", pointwise, depthwise)
