"""The convolutions of a model and their surroundings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Shape = tuple[int, ...]
NormKind = Literal["none", "spectral-hook", "spectral-param", "weight-hook", "weight-param", "own"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """One convolution of a model.

    Shapes are ``(N, C, H, W)`` of the first call, None where the convolution never ran. Those of a
    one-dimensional convolution have height 1, and so has its kernel.
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
    doubled: bool = False
    """Whether a nearest x2 ``F.interpolate`` in the model's code feeds this convolution alone."""
    noise: str | None
    """Name of the noise-injection module that alone reads the output, if there is one."""
    batchnorm: str | None
    """Name of the batch normalisation that reads the output (behind the noise, if any)."""
    absorbs_scale: bool = False
    """Whether a constant factor on the output can be undone behind it: a batch normalisation
    follows, and the noise in between (if any) serves no other convolution."""
    custom: str | None = None
    """Name of its class, if that computes something other than the ``torch.nn`` layer."""
    locked: str | None = None
    """The reason why it must keep its kernel (other code uses it), or None."""
    params: int
    macs: int | None
    dims: Literal[1, 2] = 2
    """Dimensions of the maps without batch and channels."""


@dataclass(frozen=True, kw_only=True)
class Sites:
    """All convolutions of a model, and the facts about its other modules that a plan needs.

    ``dead`` are modules (not only convolutions) that ``forward`` did not call. Other code may call
    them (an embedding of the classes, outside ``forward``): a plan removes those that the adapter
    also lists as ``unused``, and others only on request.
    """

    model: str
    convolutions: tuple[Site, ...]
    order: tuple[str, ...]
    """Names of the live sites in execution order."""
    dead: tuple[str, ...]
    leaves: tuple[str, ...]
    """Modules that torch.fx did not trace into: it could not, or they were declared leaves."""
    shapes_known: bool
    note: str | None = None
    """The reason if shapes are unknown."""
    modules: tuple[str, ...] = ()
    """The names of all modules."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Further names of modules with several names, each with the first name."""
    unused: tuple[str, ...] = ()

    @property
    def not_dead(self) -> str:
        """The reason why a module outside of ``dead`` can't be removed, for a sentence about it."""
        return "runs" if self.shapes_known else "may run: nothing says what the inputs look like"

    def holding(self, names: Sequence[str]) -> Sites:
        """Return a copy in which no site may change one of the modules ``names``."""
        if not names:
            return self
        sites: list[Site] = []
        for site in self.convolutions:
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
        return replace(self, convolutions=tuple(sites))


def within(name: str | None, parents: Sequence[str]) -> bool:
    """Return whether a module is one of ``parents`` or inside one."""
    return name is not None and any(name == p or name.startswith(f"{p}.") for p in parents)
