"""pw -> dw pairs (and their upsample-aware form): descent on the exact quadratic error.

The pointwise has one normal matrix an output here, so closed alternation is dear. The error is
still a quadratic form of the composed kernel (:mod:`dsconvert.fit.moments`), and in a whitened
basis of the inputs' principal components it is well conditioned: some eighty steps of Adam on the
moments, without touching the data again, converge. The start is the better of the kernel's SVD and
the SVD of the whitened dense least-squares solution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsconvert.fit.moments import (
    Conv,
    Moments,
    channel_mean,
    channel_variance,
    moments,
    second_moment,
    taps_per_phase,
)
from dsconvert.fit.sample import Sample

_STEPS = 80
_RATE = 0.03
_LEFT = 1e-4
"""Share of the variance that may stay outside the kept components."""
_WORK = 0.6e12
"""Multiply-adds that the descent may take on one layer (tens of seconds on two cores)."""


def _components(outs: int, taps: tuple[int, ...]) -> int:
    """How many principal components the work limit allows."""
    per_square = sum(3 * outs * t * t for t in taps) * _STEPS
    return max(32, int((_WORK / per_square) ** 0.5))


def _loss(mix: Tensor, filters: Tensor, stats: tuple[Moments, ...], *, centred: bool) -> Tensor:
    """Squared error of the composed kernel: mix ``(O, R, P)``, filters ``(O, R, k^2)``.

    Where a normalisation follows, one constant an output (the same in all phases) is free.
    """
    total, free = mix.new_zeros(()), mix.new_zeros(len(mix))
    for m in stats:
        kernel = torch.einsum("orp,ort->otp", mix, filters[:, :, list(m.taps)]).flatten(1)
        total = total + ((kernel @ m.xx) * kernel).sum() - 2 * (kernel * m.xy.t()).sum()
        total = total + m.yy.sum()
        free = free + (m.y - kernel @ m.x) / len(stats)
    return total - len(stats) * free.square().sum() if centred else total


def _whitened_start(
    mix: Tensor, filters: Tensor, stats: tuple[Moments, ...], rank: int, *, centred: bool
) -> tuple[Tensor, Tensor]:
    """The SVD of the dense least-squares kernel in the whitened basis."""
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


def fit_pointwise_depthwise(pair: nn.Sequential, sample: Sample, *, samples: int = 30_000) -> None:
    """Fit a pw -> dw pair in place; left as it was where held-out error does not fall."""
    point, spatial = pair.get_submodule("pointwise"), pair.get_submodule("depthwise")
    if not isinstance(spatial, Conv) or not isinstance(point, nn.Conv2d):
        raise TypeError("a pw -> dw pair has a pointwise and a depthwise convolution")
    outs = spatial.out_channels
    rank, taps = point.out_channels // outs, spatial.kernel_size[0] * spatial.kernel_size[1]
    # Second moments around zero, not the mean: padding is a real zero, and the mean is one
    # direction more.
    values, vectors = torch.linalg.eigh(second_moment(sample.inputs))
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    variance = float(channel_variance(sample.inputs, channel_mean(sample.inputs)).sum())
    if float(values[0]) == 0.0 or variance == 0.0:
        return
    left = values.flip(0).cumsum(0).flip(0)  # energy from each component on
    parts = min(int((left > _LEFT * variance).sum()), _components(outs, taps_per_phase(spatial)))
    scale = (values[:parts] + 1e-6 * values[0]).sqrt()
    dtype = sample.inputs[0].dtype
    whiten = (vectors[:, :parts] / scale).t().to(dtype)
    colour = (vectors[:, :parts] * scale).to(dtype)
    stats = moments(
        spatial,
        sample.inputs,
        sample.wanted,
        offset=None if sample.centred else sample.shift(spatial),
        project=whiten,
        samples=samples,
    )
    first_mix = point.weight.reshape(outs, rank, -1).detach().clone()
    first_filters = spatial.weight.reshape(outs, rank, taps).detach().clone()
    mix, filters = first_mix @ colour, first_filters
    centred = sample.centred
    other = _whitened_start(mix, filters, stats, rank, centred=centred)
    if float(_loss(*other, stats, centred=centred)) < float(
        _loss(mix, filters, stats, centred=centred)
    ):
        mix, filters = other
    mix, filters = _descend(mix, filters, stats, centred=centred)
    # Outside the kept components the kernel stays what it was, expressed in the new filters.
    rest = first_mix - (first_mix @ colour) @ whiten
    overlap = first_filters @ filters.transpose(1, 2)
    own = (filters @ filters.transpose(1, 2)).double()
    own.diagonal(dim1=1, dim2=2).add_(1e-6 * float(own.diagonal(dim1=1, dim2=2).mean()) + 1e-30)
    turn = torch.linalg.solve(own, overlap.transpose(1, 2).double()).to(dtype)
    before, old = sample.error(pair), [p.detach().clone() for p in pair.parameters()]
    point.weight.copy_((mix @ whiten + turn @ rest).reshape(point.weight.shape))
    spatial.weight.copy_(filters.reshape(spatial.weight.shape))
    sample.match_mean(pair, spatial)
    if not sample.error(pair) < before:
        for p, value in zip(pair.parameters(), old, strict=True):
            p.copy_(value)


@torch.enable_grad()
def _descend(
    mix: Tensor, filters: Tensor, stats: tuple[Moments, ...], *, centred: bool
) -> tuple[Tensor, Tensor]:
    a, b = mix.clone().requires_grad_(True), filters.clone().requires_grad_(True)
    energy = float(sum(float(m.yy.sum()) for m in stats)) or 1.0
    optimiser = torch.optim.Adam([a, b], lr=_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    best, keep = float("inf"), (mix, filters)
    for _ in range(_STEPS):
        loss = _loss(a, b, stats, centred=centred) / energy
        now = float(loss.detach())
        if now < best:
            best, keep = now, (a.detach().clone(), b.detach().clone())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    if float(_loss(a, b, stats, centred=centred).detach()) / energy < best:
        keep = (a.detach(), b.detach())
    return keep
