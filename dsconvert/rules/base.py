"""The interface of a rewrite rule: where it applies, its cost, its module, its fit, its inverse.

A rule builds plain ``torch.nn`` modules only, so that a converted model runs without dsconvert.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dsconvert.fit import Sample
from dsconvert.records import Site


@dataclass(frozen=True, kw_only=True)
class Built:
    """The replacement of one convolution, and the share of the kernel's energy that it loses."""

    module: nn.Module
    residual: float


@dataclass(frozen=True, kw_only=True)
class FitMethod:
    """The solver of one rule.

    Attributes:
        name: for :attr:`dsconvert.records.Fit.method`, for example ``least squares``.
        run: ``run(module, sample)`` fits ``module``, which :meth:`Rule.build` made, to ``sample``
            in place. Gradients are off, and module and sample have one dtype and device. The caller
            measures the held-out error, and restores the module where that rises or a parameter is
            not finite. To fit a second factor, replace ``inputs`` and ``held_input`` of the sample
            by the output of the first (:func:`dataclasses.replace`) and call
            :func:`dsconvert.fit.fit_dense`.
    """

    name: str
    run: Callable[[nn.Module, Sample], None]


class Rule(ABC):
    """One way to rewrite a convolution; it does not change and is registered by name.

    Required members: :attr:`name`, :meth:`why_not`, :meth:`max_rank`, :meth:`params`, :meth:`macs`
    and :meth:`build`. The other members have defaults. :func:`dsconvert.testing.check_rule` tests
    all of them.
    """

    name: str
    """Unique, for plans and reports, for example ``dw-pw``."""
    absorbs_upsample: bool = False
    """Whether the replacement includes ``site.upsample``, which becomes an ``nn.Identity``."""
    exact: bool = False
    """Whether the replacement computes the same function at every rank."""
    fit: FitMethod | None = None
    """The solver that improves a replacement from activations; None: it stays at its SVD."""

    @abstractmethod
    def why_not(self, site: Site) -> str | None:
        """Return the reason, for a person, why the rule does not apply to ``site``, or None."""

    @abstractmethod
    def max_rank(self, site: Site) -> int:
        """Return the rank at which the rewrite is exact.

        A plan may ask for every rank from 1 to this one, so :meth:`build` makes each of them.
        """

    @abstractmethod
    def params(self, site: Site, rank: int) -> int:
        """Return the parameters of the replacement."""

    @abstractmethod
    def macs(self, site: Site, rank: int) -> int | None:
        """Return the multiply-accumulates of all calls for one sample; None: shapes unknown."""

    @abstractmethod
    def build(self, site: Site, kernel: Tensor, bias: Tensor | None, rank: int) -> Built:
        """Build the replacement of a convolution with the dense ``kernel (O, I, kh, kw)``.

        The kernel is in the order of ``nn.Conv2d`` for both kinds of convolution, as applied
        (norms folded). The result has the kernel's dtype and device.
        """

    def rank_of(self, module: nn.Module) -> int | None:  # noqa: ARG002 - a default
        """Return the rank of ``module`` if it has the layout that :meth:`build` makes, else None.

        Converted files hold no rule names: reports recognise a replacement by this method. A rule
        with ``absorbs_upsample`` is asked only about modules behind an ``nn.Identity``. Default:
        None, the replacement is not recognised.
        """
        return None

    def merge(self, module: nn.Module) -> nn.Module | None:  # noqa: ARG002 - a default
        """Return the dense convolution that computes the same as ``module``, norms folded.

        Default: None, as for any module that this rule did not build.
        """
        return None


def area(kernel_size: tuple[int, int]) -> int:
    """Return the number of taps of a kernel."""
    return kernel_size[0] * kernel_size[1]


def grids(site: Site) -> tuple[int, int] | None:
    """Return the pixels of input and output, times the calls; None where shapes are unknown."""
    if site.calls is None:
        return None
    if site.input_shape is None or site.output_shape is None:
        return (0, 0)
    (ih, iw), (oh, ow) = site.input_shape[-2:], site.output_shape[-2:]
    return site.calls * ih * iw, site.calls * oh * ow


def why_not_separable(site: Site) -> str | None:
    """Return the reason why no separable rewrite applies to ``site``, or None."""
    if site.custom is not None:
        return f"a {site.custom} computes in a way of its own, which plain layers would not repeat"
    if site.groups != 1:
        return f"already grouped ({site.groups} groups)"
    if area(site.kernel_size) == 1:
        return "a 1x1 convolution is pointwise already"
    return None


def assign(module: nn.Conv2d | nn.ConvTranspose2d, weight: Tensor, bias: Tensor | None) -> None:
    """Set the parameters of ``module``; they take the tensors' dtype and device."""
    module.weight = nn.Parameter(weight.reshape(module.weight.shape).contiguous())
    if bias is not None:
        module.bias = nn.Parameter(bias.clone())


def named(**children: nn.Module) -> nn.Sequential:
    """Return an ``nn.Sequential`` with named children, in the given order."""
    return nn.Sequential(OrderedDict(children))


def spatial_options(site: Site) -> dict[str, Any]:
    """Return the constructor arguments that the spatial factor copies from the original."""
    options: dict[str, Any] = {
        "stride": site.stride,
        "padding": site.padding,
        "dilation": site.dilation,
        "padding_mode": site.padding_mode,
    }
    if site.kind == "transposed":
        options["output_padding"] = site.output_padding
    return options
