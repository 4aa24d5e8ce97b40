"""What dsconvert needs to know about a GAN codebase, and where it looks for it.

An adapter is an object found through the entry-point group ``dsconvert.adapters``; the built-in
ones come through the same door as a stranger's.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from dsconvert.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import nn

    Sampler = Callable[[int, torch.Generator], tuple[Any, ...]]
    """``sampler(n, generator)`` returns the positional arguments of one forward call, batch n."""

GROUP = "dsconvert.adapters"


@runtime_checkable
class Adapter(Protocol):
    """One GAN codebase: its architecture, its names, its example inputs."""

    @property
    def name(self) -> str:
        """A short name, for example ``projected_gan``."""
        ...

    @property
    def classes(self) -> Mapping[tuple[str, str], type[nn.Module]]:
        """Foreign ``(module, class)`` names to our own classes, as the files spell them."""
        ...

    def matches(self, model: nn.Module) -> bool:
        """Whether this adapter knows the live module ``model``."""
        ...

    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        """Architecture facts read off names and shapes (cfg, resolution, ngf, c_dim, ...)."""
        ...

    def sampler(self, model: nn.Module) -> Sampler:
        """A sampler of random inputs for ``model`` (latents are free: no data is needed)."""
        ...

    def leaves(self) -> tuple[type[nn.Module], ...]:
        """Module classes that torch.fx must not look into."""
        ...

    def noise_types(self) -> tuple[type[nn.Module], ...]:
        """Module classes that add freshly drawn noise, scaled by a ``weight`` parameter."""
        ...

    def norm_types(self) -> tuple[type[nn.Module], ...]:
        """Batch normalisations of the codebase's own, with ``stored_mean`` and ``stored_var``."""
        ...


def adapters() -> tuple[Adapter, ...]:
    """All installed adapters, in order of their names.

    Raises:
        AdapterError: two adapters claim one name, or one can't be imported.
    """
    found: dict[str, Adapter] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        try:
            adapter = point.load()
        except Exception as error:
            raise AdapterError(
                f"adapter {point.name!r} ({point.value}) can't be imported: {error}. "
                "Uninstall or mend the package that provides it."
            ) from error
        if not isinstance(adapter, Adapter):
            raise AdapterError(
                f"adapter {point.name!r} ({point.value}) is not a dsconvert.adapter.Adapter: "
                "it lacks a member of that protocol."
            )
        if adapter.name in found:
            raise AdapterError(f"two installed adapters are called {adapter.name!r}; remove one.")
        found[adapter.name] = adapter
    return tuple(found.values())


def adapter_for(model: nn.Module) -> Adapter | None:
    """The installed adapter that knows ``model``, or None."""
    return next((a for a in adapters() if a.matches(model)), None)
