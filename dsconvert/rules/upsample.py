"""Rewrites that take a nearest x2 upsample into the convolution behind it.

A pointwise convolution commutes with a nearest upsample, so it can run at the low resolution, at a
quarter of the cost; what remains is a depthwise 3x3 behind the upsample, which is exactly one
depthwise transposed convolution (see :func:`dsconvert.rules.factorise.upsampled`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import skip_init

from dsconvert.records import Site
from dsconvert.rules import factorise
from dsconvert.rules.base import Built, Order, assign, grids, named, refuses_common
from dsconvert.rules.separable import pointwise

_TAPS = 16


def _refuses(site: Site) -> str | None:
    if (common := refuses_common(site)) is not None:
        return common
    if site.kind != "conv" or site.upsample is None:
        return "no nearest x2 nn.Upsample feeds this convolution alone"
    plain = (
        site.kernel_size == (3, 3)
        and site.stride == (1, 1)
        and site.dilation == (1, 1)
        and site.padding in ((1, 1), "same")
        and site.padding_mode == "zeros"
    )
    return None if plain else "behind an upsample, but not a 3x3, stride 1, zero-padded one"


def _transposed(inp: int, out: int, groups: int, weight: Tensor, bias: Tensor | None) -> nn.Module:
    conv: Any = skip_init(
        nn.ConvTranspose2d, inp, out, 4, stride=2, padding=1, groups=groups, bias=bias is not None
    )
    assign(conv, weight, bias)
    return conv


@dataclass(frozen=True)
class UpsamplePointwiseDepthwise:
    """Pointwise at the low resolution, then one depthwise transposed convolution (k=4, s=2)."""

    name: str = "up-pw-dw"
    order: Order = "pw-dw"
    absorbs_upsample: bool = True

    def refuses(self, site: Site) -> str | None:
        """See :class:`dsconvert.rules.base.Rule`."""
        return _refuses(site)

    def max_rank(self, site: Site) -> int:
        """Nine: the 16 taps are a linear image of the 3x3 kernel."""
        return min(9, site.in_channels)

    def params(self, site: Site, rank: int) -> int:
        """``I O R + 16 O R``, and the bias."""
        bias = site.out_channels if site.bias else 0
        return site.out_channels * rank * (site.in_channels + _TAPS) + bias

    def macs(self, site: Site, rank: int) -> int | None:
        """Everything is counted at the low resolution."""
        if (grid := grids(site)) is None:
            return None
        return site.out_channels * rank * (site.in_channels + _TAPS) * (grid[1] // 4)

    def build(self, site: Site, kernel: Tensor, bias: Tensor | None, rank: int) -> Built:
        """See :class:`dsconvert.rules.base.Rule`."""
        factors = factorise.pointwise_depthwise(kernel, rank)
        out = site.out_channels
        return Built(
            module=named(
                pointwise=pointwise(site.in_channels, out * rank, factors.pointwise, None),
                depthwise=_transposed(
                    out * rank, out, out, factorise.upsampled(factors.depthwise), bias
                ),
            ),
            residual=factors.residual,
        )


@dataclass(frozen=True)
class UpsampleMerge:
    """Upsample + 3x3 as one dense transposed convolution: the same image, 16/36 of the MACs."""

    name: str = "up-merge"
    order: Order = "dense"
    absorbs_upsample: bool = True

    def refuses(self, site: Site) -> str | None:
        """See :class:`dsconvert.rules.base.Rule`."""
        return _refuses(site)

    def max_rank(self, site: Site) -> int:  # noqa: ARG002 - the protocol's signature
        """Always exact; the rank means nothing here."""
        return 1

    def params(self, site: Site, rank: int) -> int:  # noqa: ARG002 - the protocol's signature
        """``16 I O``, and the bias: more parameters, fewer MACs."""
        bias = site.out_channels if site.bias else 0
        return site.in_channels * site.out_channels * _TAPS + bias

    def macs(self, site: Site, rank: int) -> int | None:  # noqa: ARG002 - the protocol's signature
        """``16 I O`` an input pixel."""
        if (grid := grids(site)) is None:
            return None
        return site.in_channels * site.out_channels * _TAPS * (grid[1] // 4)

    def build(self, site: Site, kernel: Tensor, bias: Tensor | None, rank: int) -> Built:  # noqa: ARG002
        """See :class:`dsconvert.rules.base.Rule`."""
        weight = factorise.upsampled(kernel.transpose(0, 1))
        return Built(
            module=_transposed(site.in_channels, site.out_channels, 1, weight, bias), residual=0.0
        )
