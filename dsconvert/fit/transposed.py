"""Least squares for a dense transposed convolution, phase by phase."""

from __future__ import annotations

from torch import Tensor, nn

from dsconvert.fit.least_squares import MAX_UNKNOWNS, RIDGES, pick, ridge_towards
from dsconvert.fit.moments import Moments, moments
from dsconvert.fit.sample import Sample

_ALTERNATIONS = 3


def fit_transposed(conv: nn.ConvTranspose2d, sample: Sample, *, samples: int = 40_000) -> None:
    """Fit a dense transposed convolution in place, with a ridge that the held-out error selects.

    Each phase of the output has taps of its own, and so a system of its own. Where a batch
    normalisation follows, one constant an output is free, the same in all phases: taps and
    constants are solved in turn. A grouped convolution, and one with more than
    ``2 * MAX_UNKNOWNS`` unknowns an output and phase, stays as it is.

    Args:
        conv: its present weight is the start.
        sample: inputs of ``conv`` and the outputs that it should have.
        samples: positions of each phase that the least squares use at most.
    """
    inp, outs = conv.weight.shape[:2]
    if conv.groups != 1:
        return
    phases = moments(
        conv,
        sample.inputs,
        sample.wanted,
        offset=None if sample.centred else sample.shift(conv),
        samples=samples,
    )
    if max(len(p.taps) for p in phases) * inp > 2 * MAX_UNKNOWNS:
        return
    start = conv.weight.detach().clone()
    bias = None if conv.bias is None else conv.bias.detach().clone()

    def restore() -> None:
        conv.weight.copy_(start)
        if bias is not None and conv.bias is not None:
            conv.bias.copy_(bias)

    def put(ridge: float) -> None:
        restore()
        constant = start.new_zeros(outs).double()
        for _ in range(_ALTERNATIONS if sample.centred else 1):
            if sample.centred:
                left = (p.y.double() - _flat(conv, p).t() @ p.x.double() for p in phases)
                constant = sum(left, constant * 0) / len(phases)
            for phase in phases:
                taps = list(phase.taps)
                right = phase.xy.double() - phase.x.double()[:, None] * constant
                first = _flatten(start, taps)
                best = ridge_towards(first, phase.xx.double(), right, ridge)
                conv.weight.flatten(2)[:, :, taps] = (
                    best.reshape(len(taps), inp, outs).permute(1, 2, 0).to(start.dtype)
                )
        sample.match_mean(conv, conv)

    pick([lambda r=r: put(r) for r in RIDGES], restore, lambda: sample.error(conv))


def _flatten(weight: Tensor, taps: list[int]) -> Tensor:
    """Return the taps of a weight (I, O, kh, kw) as the unknowns (T I, O) of their phase."""
    inp, outs = weight.shape[:2]
    return weight.flatten(2)[:, :, taps].permute(2, 0, 1).reshape(len(taps) * inp, outs).double()


def _flat(conv: nn.ConvTranspose2d, phase: Moments) -> Tensor:
    return _flatten(conv.weight.detach(), list(phase.taps))
