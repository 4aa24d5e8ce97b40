"""pw -> dw: pointwise to R channels an output, then depthwise; the blueprint order.

The fit is a descent on the exact quadratic error. The pointwise has one normal matrix an output
here, so alternating closed solutions are expensive. The error is still a quadratic form of the
composed kernel (:mod:`dsconvert.fit.moments`), and in a whitened basis of the inputs' principal
components it is well conditioned: a few dozen steps of :mod:`dsconvert.fit.product_kernel`, which
never touch the data again, converge. The start is the better one of the kernel's SVD and the SVD of
the whitened dense least-squares solution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsconvert.fit import (
    Moments,
    Sample,
    channel_mean,
    channel_variance,
    moments,
    second_moment,
    taps_per_phase,
)
from dsconvert.fit.product_kernel import ProductError, minimise
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

_STEPS = 40
_LEFT = 1e-4
"""Share of the variance that may stay outside the kept components."""
_WORK = 0.2e12
"""Multiply-adds that the descent may take on one layer (about five seconds on one core)."""
_SAMPLES = 30_000
"""Positions that the moments are measured at."""
_ORDER = ("pointwise", "depthwise")
_STRIDES = ((1, 1), (2, 2), (1, 2))
"""Of the pointwise, which reads every other pixel of a doubled map (or of its width alone)."""


def _components(outs: int, taps: tuple[int, ...]) -> int:
    """Return the number of principal components that the work limit allows."""
    per_square = sum(2 * outs * t * t for t in taps) * _STEPS
    return max(32, int((_WORK / per_square) ** 0.5))


def _whitened_start(
    mix: Tensor, filters: Tensor, stats: tuple[Moments, ...], rank: int, *, centred: bool
) -> tuple[Tensor, Tensor]:
    """Return the SVD of the dense least-squares kernel in the whitened basis."""
    outs, _, parts = mix.shape
    dense = mix.new_zeros(outs, parts, filters.shape[-1])
    for m in stats:
        taps = list(m.taps)
        start = torch.einsum("orp,ort->otp", mix, filters[:, :, taps]).flatten(1).double()
        xx, xy = m.centred() if centred else (m.xx.double(), m.xy.double())
        ridge = 1e-4 * xx.diagonal().mean() * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
        best = start + torch.linalg.solve(xx + ridge, xy - xx @ start.t()).t()
        dense[:, :, taps] = best.reshape(outs, len(taps), parts).transpose(1, 2).to(dense.dtype)
    gram = (dense.transpose(1, 2) @ dense).double()
    _, vectors = torch.linalg.eigh(gram)
    basis = vectors[:, :, -rank:].flip(-1).to(dense.dtype)
    left = dense @ basis
    scale = left.norm(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
    return (left / scale).transpose(1, 2).contiguous(), (basis * scale).transpose(1, 2).contiguous()


def fit_pointwise_depthwise(module: nn.Module, sample: Sample) -> None:
    """Fit a pw -> dw pair in place; it is restored where the held-out error does not fall."""
    found = (pair_of(module, *_ORDER, stride=stride) for stride in _STRIDES)
    pair = next((p for p in found if p is not None), None)
    if pair is None:
        raise TypeError("a pw -> dw pair has a pointwise and a depthwise convolution")
    spatial, point = pair
    # A pointwise with a stride reads these positions of its input.
    down, right = point.stride
    inputs = [x[..., ::down, ::right] for x in sample.inputs]
    outs = spatial.out_channels
    rank, taps = point.out_channels // outs, spatial.kernel_size[0] * spatial.kernel_size[1]
    # Second moments around zero, not the mean: padding is a real zero, and the mean is one
    # direction more.
    values, vectors = torch.linalg.eigh(second_moment(inputs))
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    variance = float(channel_variance(inputs, channel_mean(inputs)).sum())
    if float(values[0]) == 0.0 or variance == 0.0:
        return
    left = values.flip(0).cumsum(0).flip(0)  # energy from each component on
    parts = min(int((left > _LEFT * variance).sum()), _components(outs, taps_per_phase(spatial)))
    scale = (values[:parts] + 1e-6 * values[0]).sqrt()
    dtype = inputs[0].dtype
    whiten = (vectors[:, :parts] / scale).t().to(dtype)
    colour = (vectors[:, :parts] * scale).to(dtype)
    stats = moments(
        spatial,
        inputs,
        sample.wanted,
        offset=None if sample.centred else sample.shift(spatial),
        project=whiten,
        samples=_SAMPLES,
    )
    first_mix = point.weight.reshape(outs, rank, -1).detach().clone()
    first_filters = spatial.weight.reshape(outs, rank, taps).detach().clone()
    mix, filters = first_mix @ colour, first_filters
    centred = sample.centred
    other = _whitened_start(mix, filters, stats, rank, centred=centred)
    error = ProductError.of(stats, centred=centred)
    if error.of_factors(*other) < error.of_factors(mix, filters):
        mix, filters = other
    mix, filters = minimise(mix, filters, error, steps=_STEPS)
    # Outside the kept components the kernel does not change; express it in the new filters.
    rest = first_mix - (first_mix @ colour) @ whiten
    overlap = first_filters @ filters.transpose(1, 2)
    own = (filters @ filters.transpose(1, 2)).double()
    own.diagonal(dim1=1, dim2=2).add_(1e-6 * float(own.diagonal(dim1=1, dim2=2).mean()) + 1e-30)
    turn = torch.linalg.solve(own, overlap.transpose(1, 2).double()).to(dtype)
    before, old = sample.error(module), [p.detach().clone() for p in module.parameters()]
    point.weight.copy_((mix @ whiten + turn @ rest).reshape(point.weight.shape))
    spatial.weight.copy_(filters.reshape(spatial.weight.shape))
    sample.match_mean(module, spatial)
    if not sample.error(module) < before:
        for p, value in zip(module.parameters(), old, strict=True):
            p.copy_(value)


def pointwise_depthwise_of(module: nn.Module, *, stride: tuple[int, int] = (1, 1)) -> Pair | None:
    """Return the factors of ``module`` if it is a pw -> dw pair with that stride of the former."""
    return pair_of(module, *_ORDER, stride=stride)


class PointwiseDepthwise(Rule):
    """Pointwise to R channels per output, then depthwise: the blueprint order."""

    name = "pw-dw"
    fit = FitMethod(name="moments", run=fit_pointwise_depthwise)

    def why_not(self, site: Site) -> str | None:
        """See :class:`dsconvert.rules.Rule`."""
        return why_not_separable(site)

    def max_rank(self, site: Site) -> int:
        """Exact at ``min(k^2, I)``: the matrices are ``I x k^2``."""
        return min(area(site.kernel_size), site.in_channels)

    def params(self, site: Site, rank: int) -> int:
        """``I O R + O R k^2``, and the bias."""
        inner = site.out_channels * rank
        bias = site.out_channels if site.bias else 0
        return inner * (area(site.kernel_size) + site.in_channels) + bias

    def macs(self, site: Site, rank: int) -> int | None:
        """The pointwise runs at the input's resolution."""
        if (grid := grids(site)) is None:
            return None
        inner = site.out_channels * rank
        spatial = grid[0] if site.kind == "transposed" else grid[1]
        return inner * (area(site.kernel_size) * spatial + site.in_channels * grid[0])

    def build(self, site: Site, kernel: Tensor, bias: Tensor | None, rank: int) -> Built:
        """See :class:`dsconvert.rules.Rule`."""
        factors = factorise.pointwise_depthwise(kernel, rank)
        inner = site.out_channels * rank
        return Built(
            module=named(
                pointwise=pointwise(site.in_channels, inner, factors.pointwise, None),
                depthwise=depthwise(site, inner, site.out_channels, factors.depthwise, bias),
            ),
            residual=factors.residual,
        )

    def rank_of(self, module: nn.Module) -> int | None:
        """The input channels of a group of the depthwise."""
        pair = pair_of(module, *_ORDER)
        return None if pair is None else pair.depthwise.in_channels // pair.depthwise.groups

    def merge(self, module: nn.Module) -> nn.Module | None:
        """See :func:`dsconvert.rules.factorise.compose_pointwise_depthwise`."""
        if (pair := pair_of(module, *_ORDER)) is None:
            return None
        filters, mix = as_stored_wide(pair)
        outs = pair.depthwise.out_channels
        kernel = factorise.compose_pointwise_depthwise(
            mix.reshape(outs, -1, mix.shape[1]), filters.reshape(outs, -1, *filters.shape[-2:])
        )
        return dense_of(module, pair, kernel, pair.depthwise.bias)
