"""What a rewrite rule is: which convolutions it fits, what it costs, what it builds.

A rule makes plain ``torch.nn`` modules only, so that a converted model needs no dsconvert to run.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from dsconvert.records import Site

Order = Literal["dw-pw", "pw-dw", "dense"]


@dataclass(frozen=True, kw_only=True)
class Built:
    """The replacement of one convolution, and the share of the kernel's energy that it loses."""

    module: nn.Module
    residual: float


class Rule(Protocol):
    """One way to rewrite a convolution. Stateless; registered by name in ``dsconvert.rules``."""

    @property
    def name(self) -> str:
        """Unique, for plans and reports, for example ``dw-pw``."""
        ...

    @property
    def order(self) -> Order:
        """How the replacement is laid out; the fit depends on it."""
        ...

    @property
    def absorbs_upsample(self) -> bool:
        """Whether ``site.upsample`` becomes an ``nn.Identity``, its work done by the rule."""
        ...

    def refuses(self, site: Site) -> str | None:
        """Why this rule does not fit ``site`` (for a person to read), or None if it does."""
        ...

    def max_rank(self, site: Site) -> int:
        """The rank at which the rewrite is exact."""
        ...

    def params(self, site: Site, rank: int) -> int:
        """Parameters of the replacement."""
        ...

    def macs(self, site: Site, rank: int) -> int | None:
        """Multiply-accumulates of the replacement, all calls, one sample; None: shapes unknown."""
        ...

    def build(self, site: Site, kernel: Tensor, bias: Tensor | None, rank: int) -> Built:
        """The replacement of a convolution with the dense ``kernel (O, I, kh, kw)``.

        The kernel is in the order of ``nn.Conv2d`` for both kinds of convolution, as applied
        (norms folded). The result has the kernel's dtype and device.
        """
        ...


def area(kernel_size: tuple[int, int]) -> int:
    """Taps of a kernel."""
    return kernel_size[0] * kernel_size[1]


def grids(site: Site) -> tuple[int, int] | None:
    """Pixels of the input and of the output, times the calls; None where shapes are unknown."""
    if site.calls is None:
        return None
    if site.input_shape is None or site.output_shape is None:
        return (0, 0)
    (ih, iw), (oh, ow) = site.input_shape[-2:], site.output_shape[-2:]
    return site.calls * ih * iw, site.calls * oh * ow


def refuses_common(site: Site) -> str | None:
    """What no separable rewrite can do."""
    if site.custom is not None:
        return f"a {site.custom} computes in a way of its own, which plain layers would not repeat"
    if site.groups != 1:
        return f"already grouped ({site.groups} groups)"
    if area(site.kernel_size) == 1:
        return "a 1x1 convolution is pointwise already"
    return None


def spatial_options(site: Site) -> dict[str, Any]:
    """Constructor arguments that the spatial (depthwise) factor takes over from the original."""
    options: dict[str, Any] = {
        "stride": site.stride,
        "padding": site.padding,
        "dilation": site.dilation,
        "padding_mode": site.padding_mode,
    }
    if site.kind == "transposed":
        options["output_padding"] = site.output_padding
    return options


def assign(module: nn.Conv2d | nn.ConvTranspose2d, weight: Tensor, bias: Tensor | None) -> None:
    """Give ``module`` its parameters; they take the tensors' dtype and device."""
    module.weight = nn.Parameter(weight.reshape(module.weight.shape).contiguous())
    if bias is not None:
        module.bias = nn.Parameter(bias.clone())


def named(**children: nn.Module) -> nn.Sequential:
    """An ``nn.Sequential`` with named children, in the given order."""
    return nn.Sequential(OrderedDict(children))
