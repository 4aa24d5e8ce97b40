"""Rewrites that merge a nearest x2 upsample with the convolution behind it.

A pointwise convolution commutes with a nearest upsample, so it can run at the low resolution, at a
quarter of the cost; what remains is a depthwise 3x3 behind the upsample, which is exactly one
depthwise transposed convolution (see :func:`dsconvert.rules.factorise.upsampled`). Along one
dimension (a ``Conv1d`` of three taps, whose form has height 1) it has four taps instead of 16, and
half the positions instead of a quarter.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import skip_init

from dsconvert.fit import Sample, fit_transposed
from dsconvert.model.upsampling import upsampled
from dsconvert.records import Site
from dsconvert.rules import factorise
from dsconvert.rules.base import Built, FitMethod, Rule, assign, grids, named, why_not_separable
from dsconvert.rules.pointwise_depthwise import (
    PointwiseDepthwise,
    fit_pointwise_depthwise,
    pointwise_depthwise_of,
)
from dsconvert.rules.separable import pointwise


def _taps(site: Site) -> int:
    """Return the taps of the transposed kernel: 4 x 4, or 1 x 4 along one dimension."""
    return 16 if site.dims == 2 else 4


def _fewer(site: Site) -> int:
    """Return the factor between the positions of output and input."""
    return 4 if site.dims == 2 else 2


def _why_not(site: Site) -> str | None:
    if (common := why_not_separable(site)) is not None:
        return common
    if site.kind != "conv" or site.upsample is None:
        return "no nearest x2 nn.Upsample feeds this convolution alone"
    return _why_not_plain(site)


def _why_not_plain(site: Site) -> str | None:
    flat = site.dims == 1
    plain = (
        site.kernel_size == ((1, 3) if flat else (3, 3))
        and site.stride == (1, 1)
        and site.dilation == (1, 1)
        and site.padding in ((0, 1) if flat else (1, 1), "same")
        and site.padding_mode == "zeros"
    )
    if plain:
        return None
    taps = "three taps" if flat else "3x3"
    return f"behind an upsample, but not one of {taps}, stride 1, zero-padded"


def _transposed(
    site: Site, inp: int, groups: int, weight: Tensor, bias: Tensor | None
) -> nn.Module:
    flat = site.dims == 1
    conv: Any = skip_init(
        nn.ConvTranspose2d,
        inp,
        site.out_channels,
        (1, 4) if flat else 4,
        stride=(1, 2) if flat else 2,
        padding=(0, 1) if flat else 1,
        groups=groups,
        bias=bias is not None,
    )
    assign(conv, weight, bias)
    return conv


def _doubles(conv: nn.Module) -> bool:
    """Whether ``conv`` has the form that an upsample and a 3x3 convolution merge to."""
    if not isinstance(conv, nn.ConvTranspose2d):
        return False
    geometry = tuple(conv.kernel_size), tuple(conv.stride)
    return geometry in (((4, 4), (2, 2)), ((1, 4), (1, 2)))


class UpsamplePointwiseDepthwise(Rule):
    """Pointwise at the low resolution, then one depthwise transposed convolution (k=4, s=2)."""

    name = "up-pw-dw"
    absorbs_upsample = True
    fit = FitMethod(name="moments", run=fit_pointwise_depthwise)

    def why_not(self, site: Site) -> str | None:
        """See :class:`dsconvert.rules.Rule`."""
        return _why_not(site)

    def max_rank(self, site: Site) -> int:
        """Nine, or three: the taps are a linear image of the kernel's."""
        return min(9 if site.dims == 2 else 3, site.in_channels)

    def params(self, site: Site, rank: int) -> int:
        """``I O R + 16 O R`` (4 O R along one dimension), and the bias."""
        bias = site.out_channels if site.bias else 0
        return site.out_channels * rank * (site.in_channels + _taps(site)) + bias

    def macs(self, site: Site, rank: int) -> int | None:
        """Everything is counted at the low resolution."""
        if (grid := grids(site)) is None:
            return None
        each = site.out_channels * rank * (site.in_channels + _taps(site))
        return each * (grid[1] // _fewer(site))

    def build(self, site: Site, kernel: Tensor, bias: Tensor | None, rank: int) -> Built:
        """See :class:`dsconvert.rules.Rule`."""
        return _built(site, kernel, bias, rank)

    def rank_of(self, module: nn.Module) -> int | None:
        """That of a pw -> dw pair whose depthwise also upsamples."""
        pair = pointwise_depthwise_of(module)
        if pair is None or not _doubles(pair.depthwise):
            return None
        return PointwiseDepthwise().rank_of(module)

    def merge(self, module: nn.Module) -> nn.Module | None:
        """The dense transposed convolution, which upsamples, too."""
        return PointwiseDepthwise().merge(module)


class LowPointwiseDepthwise(Rule):
    """The same behind a functional upsample (``F.interpolate``), which stays in the model's code.

    Each pixel of a nearest x2 upsample's input is found at the even positions of its output. A
    pointwise of stride 2 reads these alone, and so runs at the low resolution; the depthwise
    transposed convolution is that of :class:`UpsamplePointwiseDepthwise`.
    """

    name = "low-pw-dw"
    fit = FitMethod(name="moments", run=fit_pointwise_depthwise)

    def why_not(self, site: Site) -> str | None:
        """See :class:`dsconvert.rules.Rule`."""
        if (common := why_not_separable(site)) is not None:
            return common
        if site.kind != "conv" or not site.doubled:
            return "no nearest x2 F.interpolate feeds this convolution alone"
        return _why_not_plain(site)

    def max_rank(self, site: Site) -> int:
        """See :class:`UpsamplePointwiseDepthwise`."""
        return _UP.max_rank(site)

    def params(self, site: Site, rank: int) -> int:
        """See :class:`UpsamplePointwiseDepthwise`."""
        return _UP.params(site, rank)

    def macs(self, site: Site, rank: int) -> int | None:
        """See :class:`UpsamplePointwiseDepthwise`."""
        return _UP.macs(site, rank)

    def build(self, site: Site, kernel: Tensor, bias: Tensor | None, rank: int) -> Built:
        """See :class:`dsconvert.rules.Rule`."""
        return _built(site, kernel, bias, rank, stride=(1, 2) if site.dims == 1 else (2, 2))

    def rank_of(self, module: nn.Module) -> int | None:
        """That of a pw -> dw pair that reads every other pixel, and doubles the size."""
        pair = pointwise_depthwise_of(module, stride=(2, 2))
        pair = pair or pointwise_depthwise_of(module, stride=(1, 2))
        if pair is None or not _doubles(pair.depthwise):
            return None
        return pair.depthwise.in_channels // pair.depthwise.groups


def _built(
    site: Site,
    kernel: Tensor,
    bias: Tensor | None,
    rank: int,
    *,
    stride: tuple[int, int] = (1, 1),
) -> Built:
    factors = factorise.pointwise_depthwise(kernel, rank)
    out = site.out_channels
    mix = pointwise(site.in_channels, out * rank, factors.pointwise, None, stride=stride)
    spatial = _transposed(site, out * rank, out, upsampled(factors.depthwise), bias)
    return Built(module=named(pointwise=mix, depthwise=spatial), residual=factors.residual)


_UP = UpsamplePointwiseDepthwise()


def _fit_merged(module: nn.Module, sample: Sample) -> None:
    if not isinstance(module, nn.ConvTranspose2d):
        raise TypeError("a merged upsample and convolution is one transposed convolution")
    fit_transposed(module, sample)


class UpsampleMerge(Rule):
    """Upsample + 3x3 as one dense transposed convolution: the same image, 16/36 of the MACs."""

    name = "up-merge"
    absorbs_upsample = True
    exact = True
    fit = FitMethod(name="least squares", run=_fit_merged)

    def why_not(self, site: Site) -> str | None:
        """See :class:`dsconvert.rules.Rule`."""
        return _why_not(site)

    def max_rank(self, site: Site) -> int:  # noqa: ARG002 - the interface
        """Always exact: there is no rank to choose."""
        return 1

    def params(self, site: Site, rank: int) -> int:  # noqa: ARG002 - the interface
        """``16 I O`` (4 along one dimension), and the bias: more parameters, fewer MACs."""
        bias = site.out_channels if site.bias else 0
        return site.in_channels * site.out_channels * _taps(site) + bias

    def macs(self, site: Site, rank: int) -> int | None:  # noqa: ARG002 - the interface
        """``16 I O`` (4 along one dimension) an input pixel."""
        if (grid := grids(site)) is None:
            return None
        return site.in_channels * site.out_channels * _taps(site) * (grid[1] // _fewer(site))

    def build(self, site: Site, kernel: Tensor, bias: Tensor | None, rank: int) -> Built:  # noqa: ARG002
        """See :class:`dsconvert.rules.Rule`."""
        weight = upsampled(kernel.transpose(0, 1))
        return Built(module=_transposed(site, site.in_channels, 1, weight, bias), residual=0.0)

    def rank_of(self, module: nn.Module) -> int | None:
        """1 for a dense transposed convolution that doubles the size."""
        dense = isinstance(module, nn.ConvTranspose2d) and module.groups == 1
        return 1 if dense and _doubles(module) else None
