"""dw -> pw pairs and kept convolutions: exact least squares, alternated while it helps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dsconvert.fit.guard import NotFiniteError
from dsconvert.fit.moments import Conv, channel_mean, moments
from dsconvert.fit.sample import Sample

RIDGES = (1e-6, 1e-4, 1e-2, 1e-1)
"""Ridges towards the start, as shares of the mean eigenvalue; held-out error picks one."""
_MAX_UNKNOWNS = 2400
_ALTERNATIONS = 3


def ridge_towards(start: Tensor, xx: Tensor, xy: Tensor, ridge: float) -> Tensor:
    """The minimiser of ``E|y - W^T x|^2 + ridge * mean(xx) |W - start|^2``, all in double.

    ``start`` and the result are ``(inputs, outputs)``.

    Raises:
        NotFiniteError: the system is not finite.
    """
    system = xx.clone()
    system.diagonal().add_(ridge * float(xx.diagonal().mean()) + 1e-30)
    right = xy - xx @ start
    # LAPACK fails with an internal error, or does not return, where its input is not finite.
    if not bool(system.isfinite().all()) or not bool(right.isfinite().all()):
        raise NotFiniteError("the normal equations are not finite")
    factor, info = torch.linalg.cholesky_ex(system)
    if int(info) != 0:
        return start + torch.linalg.lstsq(system, right).solution
    return start + torch.cholesky_solve(right, factor)


def _pointwise_normal(spatial: nn.Module, sample: Sample) -> tuple[Tensor, Tensor]:
    """Centred normal matrices of the pointwise behind ``spatial``, one batch in memory at a time.

    Sums are taken around the first batch's means, which keeps the later subtraction harmless.
    """
    near_h = channel_mean([spatial(sample.inputs[0])])
    near_y = channel_mean(sample.wanted[:1])
    inner, outs = len(near_h), len(near_y)
    zeros = near_h.double().new_zeros
    xx, xy = zeros(inner, inner), zeros(inner, outs)
    sum_x, sum_y, count = zeros(inner), zeros(outs), 0
    for x, y in zip(sample.inputs, sample.wanted, strict=True):
        flat_h = spatial(x).permute(1, 0, 2, 3).flatten(1) - near_h[:, None]
        flat_y = y.permute(1, 0, 2, 3).flatten(1) - near_y[:, None]
        xx += (flat_h @ flat_h.t()).double()
        xy += (flat_h @ flat_y.t()).double()
        sum_x += flat_h.sum(1, dtype=torch.float64)
        sum_y += flat_y.sum(1, dtype=torch.float64)
        count += flat_h.shape[1]
    mean_x, mean_y = sum_x / count, sum_y / count
    return xx / count - torch.outer(mean_x, mean_x), xy / count - torch.outer(mean_x, mean_y)


def fit_depthwise_pointwise(pair: nn.Sequential, sample: Sample, *, samples: int = 40_000) -> None:
    """Fit a dw -> pw pair in place: the pointwise exactly, then both in turn while it helps."""
    spatial, point = pair.get_submodule("depthwise"), pair.get_submodule("pointwise")
    if not isinstance(spatial, Conv) or not isinstance(point, nn.Conv2d):
        raise TypeError("a dw -> pw pair has a depthwise and a pointwise convolution")
    xx, xy = _pointwise_normal(spatial, sample)
    start = point.weight.flatten(1).t().double()
    outs = start.shape[1]

    def put_point(weight: Tensor) -> None:
        point.weight.copy_(weight.t().reshape(outs, -1, 1, 1))

    _pick(
        [lambda r=r: put_point(ridge_towards(start, xx, xy, r)) for r in RIDGES],
        lambda: put_point(start),
        lambda: sample.error(pair),
    )
    sample.match_mean(pair, point)
    inp = sample.inputs[0].shape[1]
    taps = spatial.kernel_size[0] * spatial.kernel_size[1]
    rank = point.in_channels // inp
    # A transposed convolution would need its phases coupled; its pointwise fit is kept.
    small = inp * taps * rank <= _MAX_UNKNOWNS
    if isinstance(spatial, nn.Conv2d) and small:
        _alternate(pair, spatial, point, sample, rank, samples)


def _alternate(
    pair: nn.Sequential,
    spatial: nn.Conv2d,
    point: nn.Conv2d,
    sample: Sample,
    rank: int,
    samples: int,
) -> None:
    inp, outs = sample.inputs[0].shape[1], point.out_channels
    taps = spatial.kernel_size[0] * spatial.kernel_size[1]
    (stats,) = moments(
        spatial,
        sample.inputs,
        sample.wanted,
        offset=None if sample.centred else sample.shift(point),
        samples=samples,
    )
    flat_xx, flat_xy = stats.centred() if sample.centred else (stats.xx.double(), stats.xy.double())
    xx = flat_xx.reshape(taps, inp, taps, inp)
    xy = flat_xy.reshape(taps, inp, outs)
    filters = spatial.weight.reshape(inp, rank, taps).double()
    mixer = point.weight.reshape(outs, inp, rank).double()
    best = sample.error(pair)
    for _ in range(_ALTERNATIONS):
        gram = torch.einsum("oir,ojs->irjs", mixer, mixer)
        size = inp * rank * taps
        system = torch.einsum("irjs,tiuj->irtjsu", gram, xx).reshape(size, size)
        right = torch.einsum("oir,tio->irt", mixer, xy).reshape(size, 1)
        filters = ridge_towards(filters.reshape(size, 1), system, right, 1e-5)
        filters = filters.reshape(inp, rank, taps)
        inner = inp * rank
        system = torch.einsum("irt,tiuj,jsu->irjs", filters, xx, filters).reshape(inner, inner)
        right = torch.einsum("irt,tio->iro", filters, xy).reshape(inner, outs)
        mixed = ridge_towards(mixer.permute(1, 2, 0).reshape(inner, outs), system, right, 1e-5)
        mixer = mixed.reshape(inp, rank, outs).permute(2, 0, 1)
        before = [p.detach().clone() for p in pair.parameters()]
        spatial.weight.copy_(filters.reshape(spatial.weight.shape))
        point.weight.copy_(mixer.reshape(point.weight.shape))
        sample.match_mean(pair, point)
        error = sample.error(pair)
        if not error < best:
            for p, old in zip(pair.parameters(), before, strict=True):
                p.copy_(old)
            return
        best = error


def _pick(
    tries: list[Callable[[], None]], restore: Callable[[], None], error: Callable[[], float]
) -> None:
    """Run each try, keep the one with the least error, or what was there before."""
    best, choice = error(), restore
    for attempt in tries:
        attempt()
        if (now := error()) < best:
            best, choice = now, attempt
    choice()


def fit_dense(conv: nn.Conv2d, sample: Sample, *, samples: int = 40_000) -> None:
    """Refit a kept convolution, in place, to the inputs that it now gets (it costs nothing)."""
    outs, inp, kh, kw = conv.weight.shape
    if inp * kh * kw > 2 * _MAX_UNKNOWNS or conv.groups != 1:
        return
    (stats,) = moments(
        conv,
        sample.inputs,
        sample.wanted,
        offset=None if sample.centred else sample.shift(conv),
        samples=samples,
    )
    start = conv.weight.permute(2, 3, 1, 0).reshape(-1, outs).double()
    old = [p.detach().clone() for p in conv.parameters()]

    def put(weight: Tensor) -> None:
        conv.weight.copy_(weight.reshape(kh, kw, inp, outs).permute(3, 2, 0, 1))
        sample.match_mean(conv, conv)

    def restore() -> None:
        for p, value in zip(conv.parameters(), old, strict=True):
            p.copy_(value)

    xx, xy = stats.centred() if sample.centred else (stats.xx.double(), stats.xy.double())
    _pick(
        [lambda r=r: put(ridge_towards(start, xx, xy, r)) for r in RIDGES],
        restore,
        lambda: sample.error(conv),
    )
