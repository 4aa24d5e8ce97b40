"""Least squares with a ridge towards a start, judged by the held-out error."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dsconvert.fit.moments import moments, patches_of
from dsconvert.fit.overflow import NotFiniteError
from dsconvert.fit.sample import Sample
from dsconvert.fit.threads import all_threads

RIDGES = (1e-6, 1e-4, 1e-2, 1e-1)
"""Ridges towards the start, as shares of the mean eigenvalue; the held-out error selects one."""
MAX_UNKNOWNS = 2400
"""Size of the largest system of a spatial fit; a dense one may be twice as large."""


def ridge_towards(start: Tensor, xx: Tensor, xy: Tensor, ridge: float) -> Tensor:
    """Return the minimiser of ``E|y - W^T x|^2 + ridge * mean(xx) |W - start|^2``, all in double.

    ``start`` and the result are ``(inputs, outputs)``.

    Raises:
        NotFiniteError: the system is not finite.
    """
    return start + _solution(xx, xy - xx @ start, ridge * float(xx.diagonal().mean()))


def _solution(xx: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Return ``(xx + ridge)^-1 right``; the ridge is raised until rounding errors are below it."""
    # On input that is not finite, LAPACK fails with an internal error or does not return.
    if not bool(xx.isfinite().all()) or not bool(right.isfinite().all()):
        raise NotFiniteError("the normal equations are not finite")
    system = xx.clone()
    system.diagonal().add_(ridge + 1e-30)
    with all_threads(len(system) ** 3 / 6):
        factor, info = torch.linalg.cholesky_ex(system)
        while int(info) != 0:
            added = max(ridge, 1e-12 * float(xx.diagonal().mean()), 1e-30)
            system.diagonal().add_(9 * added)
            ridge = 10 * added
            if not math.isfinite(ridge):
                raise NotFiniteError("the normal equations have no solution")
            factor, info = torch.linalg.cholesky_ex(system)
        return torch.cholesky_solve(right, factor)


def _from_few(start: Tensor, x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """Return the same as :func:`ridge_towards`, from the samples ``x (S, n)`` and ``y (S, O)``.

    The system is ``S x S``: with fewer samples than unknowns it is smaller, and not singular.
    """
    gram = x @ x.t() / len(x)
    # The eigenvalues of the two systems agree but for zeros, so the mean is over the n unknowns.
    mean = float(gram.diagonal().sum()) / x.shape[1]
    return start + x.t() @ _solution(gram, y - x @ start, ridge * mean) / len(x)


def pick(
    tries: list[Callable[[], None]], restore: Callable[[], None], error: Callable[[], float]
) -> None:
    """Run each try and keep the one with the least error, or the state before all of them."""
    best, choice = error(), restore
    for attempt in tries:
        attempt()
        if (now := error()) < best:
            best, choice = now, attempt
    choice()


def fit_dense(conv: nn.Conv2d, sample: Sample, *, samples: int = 40_000) -> None:
    """Fit a dense convolution in place, with a ridge that the held-out error selects.

    A grouped convolution, and one with more than ``2 * MAX_UNKNOWNS`` inputs (``I kh kw``), stays
    as it is.

    Args:
        conv: any stride, padding and dilation; its present weight is the start.
        sample: inputs of ``conv`` and the outputs that it should have.
        samples: positions that the least squares use at most.
    """
    outs, inp, kh, kw = conv.weight.shape
    if inp * kh * kw > 2 * MAX_UNKNOWNS or conv.groups != 1:
        return
    offset = None if sample.centred else sample.shift(conv)
    start = conv.weight.permute(2, 3, 1, 0).reshape(-1, outs).double()
    old = [p.detach().clone() for p in conv.parameters()]

    def put(weight: Tensor) -> None:
        conv.weight.copy_(weight.reshape(kh, kw, inp, outs).permute(3, 2, 0, 1))
        sample.match_mean(conv, conv)

    def restore() -> None:
        for p, value in zip(conv.parameters(), old, strict=True):
            p.copy_(value)

    if sum(y.numel() for y in sample.wanted) < len(start) * outs:
        x, y = (part.double() for part in patches_of(conv, sample.inputs, sample.wanted))
        x, y = (
            (x - x.mean(0), y - y.mean(0))
            if sample.centred
            else (x, y - (0 if offset is None else offset))
        )
        tries = [lambda r=r: put(_from_few(start, x, y, r)) for r in RIDGES]
    else:
        (stats,) = moments(conv, sample.inputs, sample.wanted, offset=offset, samples=samples)
        xx, xy = stats.centred() if sample.centred else (stats.xx.double(), stats.xy.double())
        tries = [lambda r=r: put(ridge_towards(start, xx, xy, r)) for r in RIDGES]
    pick(tries, restore, lambda: sample.error(conv))
