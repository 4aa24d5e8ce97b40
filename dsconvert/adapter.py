"""The contract between dsconvert and a GAN codebase, and the look-up of installed adapters.

An adapter (a subclass of :class:`Adapter`) describes one codebase: its classes, its generator's
inputs, its files. Installed ones, the built-in included, are found through the entry-point group
``dsconvert.adapters``; ``adapter=`` and ``adapters=`` also accept one that is not installed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dsconvert.errors import AdapterError
from dsconvert.records.recipe import Recipe
from dsconvert.util.entry_points import installed
from dsconvert.util.image_output import image_path, image_tensor
from dsconvert.util.module_protocols import Follows, Narrows, NormalisesWeight

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from dsconvert.records.pictures import PictureSpec
    from dsconvert.records.sounds import MelSpec

    Sampler = Callable[[int, torch.Generator], tuple[Any, ...]]
    """``sampler(n, generator)`` returns the positional arguments of one forward call, batch n."""
    State = Mapping[str, torch.Tensor]
    """A state dict."""

__all__ = [
    "GROUP", "PERSISTENCE", "Adapter", "Follows", "Narrows", "NormalisesWeight", "Recipe",
    "adapter_for", "adapters", "as_adapter", "image_path", "image_tensor",
]  # fmt: skip

GROUP = "dsconvert.adapters"
PERSISTENCE = "torch_utils.persistence"
"""The module part of :attr:`Adapter.classes` for files that embed the source of their classes."""
_REQUIRED = ("name", "matches", "describe", "sampler")


class Adapter(ABC):
    """One GAN codebase: its architecture, its class names, its inputs and its files.

    Required members: :attr:`name`, :meth:`matches`, :meth:`describe` and :meth:`sampler`. Each
    other member has a default for a codebase that does not need it; its docstring says which
    feature it enables. :func:`dsconvert.testing.check_adapter` tests all of them.
    """

    name: str
    """A short unique name, for example ``projected_gan``."""

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """Return whether this adapter knows the live module ``model``."""

    @abstractmethod
    def describe(self, generator: nn.Module) -> Mapping[str, Any]:
        """Return facts about the architecture, read from names and shapes, as plain data (JSON).

        ``generator`` may be converted: ``nn.Sequential`` modules then replace some convolutions.
        ``dsconvert inspect`` prints ``cfg``, ``resolution`` (pixels), ``img_channels``, ``c_dim``
        (classes) and ``z_dim``; with ``--verbose`` it prints all facts.
        """

    @abstractmethod
    def sampler(self, model: nn.Module) -> Sampler:
        """Return a sampler of random inputs for ``model``; no data is needed.

        The sampler takes every random number from the generator that it is given.
        """

    def pictures(self, model: nn.Module) -> PictureSpec | None:
        """Return the pictures that ``model`` reads; None (the default): it reads no pictures.

        Enables ``--calibration``. The :meth:`sampler` then returns pictures of random pixels, which
        serve shapes and times; nothing is fitted to them.
        """
        return None

    def sounds(self, model: nn.Module) -> MelSpec | None:
        """Return the mel spectrograms that ``model`` reads; None (the default): it reads none.

        As :meth:`pictures`, for ``.wav`` files; :meth:`picture` returns the sound (N, 1, 1, T).
        """
        return None

    # The optional members: first the meaning of the codebase's modules.

    def leaves(self) -> tuple[type[nn.Module], ...]:
        """Return module classes that torch.fx must not trace into; default: none."""
        return ()

    def noise_types(self) -> tuple[type[nn.Module], ...]:
        """Return classes that add random noise scaled by a parameter ``weight``; default: none."""
        return ()

    def norm_types(self) -> tuple[type[nn.Module], ...]:
        """Return own batch normalisations with ``stored_mean`` and ``stored_var``; default: none.

        They normalise by the batch's statistics or by the stored ones, with ``eps`` and
        ``momentum``, then apply gain and bias.
        """
        return ()

    def unused(self, generator: nn.Module) -> tuple[str, ...]:
        """Return names of modules that never run by construction; default: none.

        A plan removes these without being asked. Any other module that ``forward`` does not call
        stays, since other code may call it.
        """
        return ()

    def affine(self, norm: nn.Module, *condition: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return gain and bias (N, C) of ``norm``, one of :meth:`norm_types`.

        Enables the training form (:func:`dsconvert.lean`) of these normalisations. ``condition``
        are the arguments of its call after the map.
        """
        raise AdapterError(f"the adapter {self.name!r} does not know the gain of its norms.")

    @property
    def can_affine(self) -> bool:
        """Whether :meth:`affine` is implemented."""
        return self._implements("affine")

    def truncation(self, generator: nn.Module, psi: float) -> Mapping[str, Any]:
        """Return the keywords of a forward call with truncated latents (``--trunc``).

        Truncation pulls latents towards their mean (Karras et al. 2019, sec. B): psi 1 changes
        nothing, psi 0 gives the mean. A generator without that mean raises AdapterError.
        """
        raise AdapterError(f"generators of {self.name} have no mapping network")

    @property
    def can_truncate(self) -> bool:
        """Whether :meth:`truncation` is implemented."""
        return self._implements("truncation")

    # Optional: new generators.

    configurations: tuple[str, ...] = ()
    """Names of the configurations that :meth:`new_generator` builds (``dsconvert train --cfg``)."""
    recipe: Recipe = Recipe()
    """What the codebase's own training does in its own way."""

    def new_generator(
        self, *, cfg: str, resolution: int, ngf: int, classes: int, img_channels: int, z_dim: int
    ) -> nn.Module:
        """Build a generator for training, with weights from torch's global random state.

        An unknown configuration or resolution raises AdapterError.
        """
        raise AdapterError(f"the adapter {self.name!r} builds no new generators.")

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the generator that :meth:`describe` describes by ``config``, with any weights.

        Enables export to safetensors. ``config`` comes from a file: check every value, and raise
        AdapterError where there is no such generator.
        """
        raise AdapterError(f"the adapter {self.name!r} can't rebuild an architecture.")

    @property
    def can_build(self) -> bool:
        """Whether :meth:`build` is implemented."""
        return self._implements("build")

    # Optional: pickled files that hold modules.

    @property
    def classes(self) -> Mapping[tuple[str, str], type[nn.Module]]:
        """``(module, class)`` names in files, and the classes here that replace them.

        Default: none. Classes of ``torch_utils.persistence`` have keys
        ``(PERSISTENCE, class name)``. No code in a file runs: states are read into these classes.
        """
        return {}

    @property
    def known_sources(self) -> Mapping[str, str]:
        """SHA-256 of released source texts (UTF-8), and the repository of each; default: none.

        Objects that are copied unread (a discriminator) may embed these texts and no others.
        """
        return {}

    def source(self) -> str | None:
        """Return the text of the module that defines :attr:`classes`; it must stand alone.

        Files of ``torch_utils.persistence`` embed it. Default: None, no such files.
        """
        return None

    def restored(self, module: nn.Module) -> str | None:
        """Complete ``module``, just read from a file; return its defect, or None (the default)."""
        return None

    # Optional: `torch.save` checkpoints, which hold tensors by name and no classes. They are read
    # with `torch.load(weights_only=True)` and not checked further: expect any content.

    def states(self, checkpoint: Mapping[str, Any]) -> Mapping[str, State]:
        """Return the state dicts of a checkpoint's generators, the one that makes images first.

        Default: none, as for any file of another codebase. A converted generator has other names
        and parameters below the name of each converted convolution. State dicts at other places
        (alone, in safetensors, under the prefix of a wrapper) need no code here: they are found by
        :meth:`read_config` and :meth:`make`.
        """
        return {}

    def read_config(self, state: State) -> Mapping[str, Any]:
        """Return plain data for :meth:`make`, from names and shapes of an original state dict."""
        raise AdapterError(f"the adapter {self.name!r} reads no checkpoints.")

    def make(self, config: Mapping[str, Any]) -> nn.Module:
        """Return the original architecture, any weights; also runs on torch's meta device."""
        raise AdapterError(f"the adapter {self.name!r} reads no checkpoints.")

    settings_file: str | None = None
    """Name of a JSON file beside a checkpoint with facts that no tensor tells; default: none."""

    def completed(
        self, config: Mapping[str, Any], settings: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        """Return ``config`` of :meth:`read_config` with the facts of :attr:`settings_file`.

        ``settings`` is its content, unchecked; None: there is none. An :class:`AdapterError` says
        that it does not fit the tensors, or is needed and missing.
        """
        return config

    def replaced(
        self, checkpoint: Mapping[str, Any], states: Mapping[str, State]
    ) -> dict[str, Any]:
        """Return the checkpoint's content with ``states`` in place of its generators'."""
        raise AdapterError(f"the adapter {self.name!r} writes no checkpoints.")

    @property
    def has_checkpoints(self) -> bool:
        """Whether :meth:`states` is implemented."""
        return self._implements("states")

    def picture(self, model: nn.Module) -> nn.Module:
        """Return a module that returns one image tensor (N, C, H, W) in [-1, 1].

        Default: ``model`` itself.
        """
        return model

    def _implements(self, member: str) -> bool:
        return getattr(type(self), member) is not getattr(Adapter, member)


def as_adapter(given: Any, origin: str = "") -> Adapter:
    """Return ``given`` as an adapter; an object with the required members need not inherit.

    Raises:
        AdapterError: a required member is missing; ``origin``, its place, is in the message.
    """
    lacks = [member for member in _REQUIRED if not hasattr(given, member)]
    if lacks:
        raise AdapterError(
            f"{origin or f'{given!r}'} is not a dsconvert.adapter.Adapter: it lacks "
            f"{', '.join(lacks)}. Inherit that class and define them."
        )
    if isinstance(given, Adapter):
        return given
    names = (*_REQUIRED, *(m for m in vars(Adapter) if not m.startswith("_")))
    members = {m: getattr(given, m) for m in names if hasattr(given, m)}
    made: type[Adapter] = type(type(given).__name__, (Adapter,), members)
    return made()


def adapters(given: Sequence[Adapter] = ()) -> tuple[Adapter, ...]:
    """Return the adapters ``given``, then all installed ones in order of their names.

    An installed one gives way to a given one of its name.

    Raises:
        AdapterError: two adapters claim one name, or one can't be imported.
    """
    first = {a.name: a for a in map(as_adapter, given)}
    if len(first) < len(given):
        raise AdapterError("two of the given adapters have one name; pass each once.")
    found: dict[str, Adapter] = {}
    for loaded, origin in installed(GROUP):
        adapter = as_adapter(loaded, origin)
        if adapter.name in found:
            raise AdapterError(f"two installed adapters are called {adapter.name!r}; remove one.")
        found[adapter.name] = adapter
    return (*first.values(), *(a for name, a in found.items() if name not in first))


def adapter_for(model: nn.Module, given: Sequence[Adapter] = ()) -> Adapter | None:
    """Return the adapter that knows ``model``, one of ``given`` first, or None."""
    return next((a for a in adapters(given) if a.matches(model)), None)
