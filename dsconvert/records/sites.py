"""The convolutions of a model, as the trace saw them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Shape = tuple[int, ...]
NormKind = Literal["none", "spectral-hook", "spectral-param", "weight-hook", "weight-param"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """One convolution of a model, as the trace saw it.

    Shapes are ``(N, C, H, W)`` of the first call, None where the convolution never ran.
    ``macs`` are multiply-accumulates of all its calls for one sample, without the bias.
    """

    name: str
    kind: Literal["conv", "transposed"]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    output_padding: tuple[int, int]
    groups: int
    padding_mode: str
    bias: bool
    norm: NormKind
    calls: int | None
    input_shape: Shape | None
    output_shape: Shape | None
    upsample: str | None
    """Name of the nearest x2 ``nn.Upsample`` child that feeds this convolution and nothing else."""
    noise: str | None
    """Name of the noise-injection module that alone reads the output, if there is one."""
    batchnorm: str | None
    """Name of the batch normalisation that reads the output (behind the noise, if any)."""
    absorbs_scale: bool = False
    """Whether a constant factor on the output can be undone behind it: a batch normalisation
    follows, and the noise in between (if any) serves no other convolution."""
    custom: str | None = None
    """Name of its class, where that computes something other than the ``torch.nn`` layer does."""
    locked: str | None = None
    """Why it must stay a convolution with this very kernel, if somebody else uses it."""
    params: int
    macs: int | None


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What tracing found.

    ``dead`` are modules (not only convolutions) that ``forward`` did not call. Something else may
    (an embedding of the classes, outside ``forward``): only those that are ``unused``, too, by what
    an adapter knows, can go without being asked for.
    """

    model: str
    sites: tuple[Site, ...]
    order: tuple[str, ...]
    """Names of the live sites in execution order."""
    dead: tuple[str, ...]
    leaves: tuple[str, ...]
    """Modules that torch.fx did not look into, by themselves or because somebody said so."""
    shapes_known: bool
    note: str | None = None
    """Why shapes are unknown, when they are."""
    modules: tuple[str, ...] = ()
    """The names of all modules."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Further names of modules that have several, each with the first, which stands for all."""
    unused: tuple[str, ...] = ()

    def holding(self, names: Sequence[str]) -> Trace:
        """The same, where ``names`` are to stay as they are: no site may change one of them."""
        if not names:
            return self
        sites: list[Site] = []
        for site in self.sites:
            upsample = None if within(site.upsample, names) else site.upsample
            noise = None if within(site.noise, names) else site.noise
            norm = None if within(site.batchnorm, names) else site.batchnorm
            # A parametrisation is a module inside the convolution, whose weight it makes.
            held = within(site.name, names) or any(n.startswith(f"{site.name}.") for n in names)
            same = (noise, norm) == (site.noise, site.batchnorm)
            sites.append(
                replace(
                    site,
                    upsample=upsample,
                    noise=noise,
                    batchnorm=norm,
                    absorbs_scale=site.absorbs_scale and same,
                    locked="kept on request" if held else site.locked,
                )
            )
        return replace(self, sites=tuple(sites))


def within(name: str | None, parents: Sequence[str]) -> bool:
    """Whether a module is one of ``parents``, or inside one."""
    return name is not None and any(name == p or name.startswith(f"{p}.") for p in parents)
