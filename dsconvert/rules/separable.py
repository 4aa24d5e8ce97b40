"""The two separable forms of a convolution or transposed convolution, in place."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import skip_init

from dsconvert.records import Site
from dsconvert.rules import factorise
from dsconvert.rules.base import (
    Built,
    Order,
    area,
    assign,
    grids,
    named,
    refuses_common,
    spatial_options,
)


def _blank(cls: type[nn.Module], *args: object, **kwargs: object) -> nn.Module:
    # No random draw: a conversion must not move the caller's random state, and it is faster.
    return skip_init(cls, *args, **kwargs)


def pointwise(inp: int, out: int, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A 1x1 convolution with the given ``(out, inp)`` weight."""
    conv = _blank(nn.Conv2d, inp, out, 1, bias=bias is not None)
    assert isinstance(conv, nn.Conv2d)
    assign(conv, weight, bias)
    return conv


def depthwise(
    site: Site, inp: int, out: int, weight: Tensor, bias: Tensor | None
) -> nn.Conv2d | nn.ConvTranspose2d:
    """The spatial factor: the original's geometry, ``min(inp, out)`` groups."""
    cls = nn.ConvTranspose2d if site.kind == "transposed" else nn.Conv2d
    conv = _blank(
        cls,
        inp,
        out,
        site.kernel_size,
        groups=min(inp, out),
        bias=bias is not None,
        **spatial_options(site),
    )
    assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
    assign(conv, weight, bias)
    return conv


@dataclass(frozen=True)
class DepthwisePointwise:
    """Depthwise (multiplier R), then pointwise: the order of Faster Projected GAN."""

    name: str = "dw-pw"
    order: Order = "dw-pw"
    absorbs_upsample: bool = False

    def refuses(self, site: Site) -> str | None:
        """See :class:`dsconvert.rules.base.Rule`."""
        return refuses_common(site)

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
        """See :class:`dsconvert.rules.base.Rule`."""
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


@dataclass(frozen=True)
class PointwiseDepthwise:
    """Pointwise to R channels per output, then depthwise: the blueprint order."""

    name: str = "pw-dw"
    order: Order = "pw-dw"
    absorbs_upsample: bool = False

    def refuses(self, site: Site) -> str | None:
        """See :class:`dsconvert.rules.base.Rule`."""
        return refuses_common(site)

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
        """See :class:`dsconvert.rules.base.Rule`."""
        factors = factorise.pointwise_depthwise(kernel, rank)
        inner = site.out_channels * rank
        return Built(
            module=named(
                pointwise=pointwise(site.in_channels, inner, factors.pointwise, None),
                depthwise=depthwise(site, inner, site.out_channels, factors.depthwise, bias),
            ),
            residual=factors.residual,
        )
