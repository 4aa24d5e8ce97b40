"""dw -> pw: depthwise (multiplier R), then pointwise; the order of Faster Projected GAN.

The fit is exact least squares of the pointwise, then of both factors in turn while that helps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsconvert.fit import MAX_UNKNOWNS, RIDGES, Sample, channel_mean, moments, pick, ridge_towards
from dsconvert.records import Site
from dsconvert.rules import factorise
from dsconvert.rules.base import Built, FitMethod, Rule, area, grids, named, why_not_separable
from dsconvert.rules.separable import (
    Pair,
    as_stored_wide,
    dense_of,
    depthwise,
    pair_of,
    pointwise,
)

_ORDER = ("depthwise", "pointwise")
_ALTERNATIONS = 3
_RIDGE = 1e-5
"""Of the alternating solutions, towards the ones before."""
_SAMPLES = 40_000
"""Positions that the moments are measured at."""


def _pointwise_normal(spatial: nn.Module, sample: Sample) -> tuple[Tensor, Tensor]:
    """Return the centred normal matrices of the pointwise behind ``spatial``.

    One batch is in memory at a time. Sums are taken around the first batch's means, so that the
    later subtraction loses no precision.
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


def fit_depthwise_pointwise(module: nn.Module, sample: Sample) -> None:
    """Fit a dw -> pw pair in place: the pointwise exactly, then both in turn while it helps."""
    pair = pair_of(module, *_ORDER)
    if pair is None:
        raise TypeError("a dw -> pw pair has a depthwise and a pointwise convolution")
    spatial, point = pair
    inp = sample.inputs[0].shape[1]
    taps = spatial.kernel_size[0] * spatial.kernel_size[1]
    rank = point.in_channels // inp
    quadratic: _Quadratic | None = None
    # The phases of a transposed convolution would be coupled: only its pointwise is fitted.
    if isinstance(spatial, nn.Conv2d) and inp * taps * rank <= MAX_UNKNOWNS:
        quadratic = _Quadratic.of(spatial, point, sample)
        filters = spatial.weight.reshape(inp, rank, taps).double()
        xx, xy = quadratic.of_pointwise(filters)
    else:
        xx, xy = _pointwise_normal(spatial, sample)
    start = point.weight.flatten(1).t().double()
    outs = start.shape[1]

    def put_point(weight: Tensor) -> None:
        point.weight.copy_(weight.t().reshape(outs, -1, 1, 1))

    pick(
        [lambda r=r: put_point(ridge_towards(start, xx, xy, r)) for r in RIDGES],
        lambda: put_point(start),
        lambda: sample.error(module),
    )
    sample.match_mean(module, point)
    if quadratic is not None:
        _alternate(module, Pair(spatial, point), sample, quadratic)


@dataclass(frozen=True)
class _Quadratic:
    """The squared error of a pair, as a quadratic form of its composed kernel.

    ``xx`` is ``(T, I, T, I)`` and ``xy`` is ``(T, I, O)``, in double precision.
    """

    xx: Tensor
    xy: Tensor

    @classmethod
    def of(cls, spatial: nn.Conv2d, point: nn.Conv2d, sample: Sample) -> _Quadratic:
        """Measure it on the sample."""
        # A bias takes up the mean, as a normalisation does.
        centred = sample.centred or point.bias is not None
        (stats,) = moments(spatial, sample.inputs, sample.wanted, samples=_SAMPLES)
        xx, xy = stats.centred() if centred else (stats.xx.double(), stats.xy.double())
        inp = sample.inputs[0].shape[1]
        return cls(xx.reshape(-1, inp, len(xx) // inp, inp), xy.reshape(-1, inp, xy.shape[1]))

    def of_pointwise(self, filters: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normal matrices of the pointwise behind ``filters (I, R, T)``."""
        inner = filters.shape[0] * filters.shape[1]
        xx = torch.einsum("irt,tiuj,jsu->irjs", filters, self.xx, filters)
        xy = torch.einsum("irt,tio->iro", filters, self.xy)
        return xx.reshape(inner, inner), xy.reshape(inner, -1)

    def of_filters(self, mixer: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normal matrices of the filters in front of ``mixer (O, I, R)``."""
        size = mixer.shape[1] * mixer.shape[2] * len(self.xx)
        gram = torch.einsum("oir,ojs->irjs", mixer, mixer)
        xx = torch.einsum("irjs,tiuj->irtjsu", gram, self.xx)
        xy = torch.einsum("oir,tio->irt", mixer, self.xy)
        return xx.reshape(size, size), xy.reshape(size, 1)


def _alternate(module: nn.Module, pair: Pair, sample: Sample, quadratic: _Quadratic) -> None:
    """Solve for the spatial filters and the mixing in turn, while the held-out error falls."""
    spatial, point = pair
    inp, outs = sample.inputs[0].shape[1], point.out_channels
    rank = point.in_channels // inp
    filters = spatial.weight.reshape(inp, rank, -1).double()
    mixer = point.weight.reshape(outs, inp, rank).double()
    best = sample.error(module)
    for _ in range(_ALTERNATIONS):
        found = ridge_towards(filters.reshape(-1, 1), *quadratic.of_filters(mixer), _RIDGE)
        filters = found.reshape(filters.shape)
        old = mixer.permute(1, 2, 0).reshape(-1, outs)
        found = ridge_towards(old, *quadratic.of_pointwise(filters), _RIDGE)
        mixer = found.reshape(inp, rank, outs).permute(2, 0, 1)
        before = [p.detach().clone() for p in module.parameters()]
        spatial.weight.copy_(filters.reshape(spatial.weight.shape))
        point.weight.copy_(mixer.reshape(point.weight.shape))
        sample.match_mean(module, point)
        error = sample.error(module)
        if not error < best:
            for p, value in zip(module.parameters(), before, strict=True):
                p.copy_(value)
            return
        best = error


class DepthwisePointwise(Rule):
    """Depthwise (multiplier R), then pointwise."""

    name = "dw-pw"
    fit = FitMethod(name="least squares", run=fit_depthwise_pointwise)

    def why_not(self, site: Site) -> str | None:
        """See :class:`dsconvert.rules.Rule`."""
        return why_not_separable(site)

    def max_rank(self, site: Site) -> int:
        """Exact at ``min(k^2, O)``: the matrices are ``O x k^2``."""
        return min(area(site.kernel_size), site.out_channels)

    def params(self, site: Site, rank: int) -> int:
        """``I R k^2 + I R O``, and the bias."""
        inner = site.in_channels * rank
        bias = site.out_channels if site.bias else 0
        return inner * (area(site.kernel_size) + site.out_channels) + bias

    def macs(self, site: Site, rank: int) -> int | None:
        """The pointwise runs at the output's resolution."""
        if (grid := grids(site)) is None:
            return None
        inner = site.in_channels * rank
        spatial = grid[0] if site.kind == "transposed" else grid[1]
        return inner * (area(site.kernel_size) * spatial + site.out_channels * grid[1])

    def build(self, site: Site, kernel: Tensor, bias: Tensor | None, rank: int) -> Built:
        """See :class:`dsconvert.rules.Rule`."""
        factors = factorise.depthwise_pointwise(kernel, rank)
        inner = site.in_channels * rank
        # Both kinds store the spatial filters as (I R, 1, ..) or (I, R, ..): the same memory.
        return Built(
            module=named(
                depthwise=depthwise(site, site.in_channels, inner, factors.depthwise, None),
                pointwise=pointwise(inner, site.out_channels, factors.pointwise, bias),
            ),
            residual=factors.residual,
        )

    def rank_of(self, module: nn.Module) -> int | None:
        """The multiplier."""
        pair = pair_of(module, *_ORDER)
        return None if pair is None else pair.depthwise.out_channels // pair.depthwise.groups

    def merge(self, module: nn.Module) -> nn.Module | None:
        """See :func:`dsconvert.rules.factorise.compose_depthwise_pointwise`."""
        if (pair := pair_of(module, *_ORDER)) is None:
            return None
        filters, mix = as_stored_wide(pair)
        filters = filters.reshape(pair.depthwise.in_channels, -1, *filters.shape[-2:])
        kernel = factorise.compose_depthwise_pointwise(filters, mix)
        return dense_of(module, pair, kernel, pair.pointwise.bias)
