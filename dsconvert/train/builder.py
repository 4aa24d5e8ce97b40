"""What an adapter may offer beside its protocol: new generators, for training from scratch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from dsconvert.adapter import adapters
from dsconvert.errors import AdapterError

if TYPE_CHECKING:
    from torch import nn


@runtime_checkable
class GeneratorBuilder(Protocol):
    """An adapter that builds new generators."""

    @property
    def configurations(self) -> tuple[str, ...]:
        """The names of its configurations (``--cfg``)."""
        ...

    def new_generator(
        self,
        *,
        cfg: str,
        resolution: int,
        ngf: int,
        classes: int,
        img_channels: int,
        z_dim: int,
    ) -> nn.Module:
        """A new generator with random weights, from torch's global random state.

        Raises:
            AdapterError: a configuration or resolution that it does not have.
        """
        ...


def builder_of(cfg: str) -> GeneratorBuilder:
    """The installed adapter that builds generators of configuration ``cfg``.

    Raises:
        AdapterError: none does.
    """
    found = [a for a in adapters() if isinstance(a, GeneratorBuilder)]
    for adapter in found:
        if cfg in adapter.configurations:
            return adapter
    known = sorted(c for a in found for c in a.configurations)
    raise AdapterError(
        f"no installed adapter builds a generator of cfg {cfg!r}; there are "
        f"{', '.join(known) or 'none'}."
    )
