"""What dsconvert needs to know about a GAN codebase, and where it looks for it.

An adapter is an object found through the entry-point group ``dsconvert.adapters``; the built-in
ones come through the same door as a stranger's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from dsconvert.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    Sampler = Callable[[int, torch.Generator], tuple[Any, ...]]
    """``sampler(n, generator)`` returns the positional arguments of one forward call, batch n."""

GROUP = "dsconvert.adapters"
PERSISTENCE = "torch_utils.persistence"
"""The module part of :attr:`Adapter.classes` for files that bring their classes' source along."""


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


_IMAGES = ("image", "images", "img", "sample")
"""Keys of a dictionary under which a generator returns its images, the likeliest first."""


def image_path(output: Any) -> tuple[int | str, ...]:
    """Indices and keys that lead to the images in what a generator returns.

    Of a list or tuple that is the first tensor of four dimensions. Of a dictionary it is the only
    one, or the one under a usual name (``image``, ``images``, ``img``, ``sample``).

    Raises:
        AdapterError: there is no such tensor, or several of a dictionary could be it.
    """
    found = list(_images(output, ()))
    if not found:
        raise AdapterError(
            f"the generator returns a {type(output).__name__}, not images (N, C, H, W)."
        )
    first = found[0]
    keys = list(dict.fromkeys(path[0] for path in found)) if isinstance(output, Mapping) else []
    if len(keys) < 2:
        return first
    known = next((k for k in _IMAGES if k in keys), None)
    if known is None:
        raise AdapterError(
            f"the generator returns several maps of four dimensions ({', '.join(map(str, keys))}) "
            "and does not say which is the image; wrap it in a module that returns the image alone."
        )
    return next(path for path in found if path[0] == known)


def _images(output: Any, path: tuple[int | str, ...]) -> Iterator[tuple[int | str, ...]]:
    import torch

    if isinstance(output, torch.Tensor):
        if output.dim() == 4:
            yield path
    elif isinstance(output, Mapping):
        for key, each in output.items():
            yield from _images(each, (*path, key))
    elif isinstance(output, list | tuple):
        for i, each in enumerate(output):
            yield from _images(each, (*path, i))


def image_tensor(output: Any) -> torch.Tensor:
    """The images in what a generator returns; see :func:`image_path`.

    Raises:
        AdapterError: there are none, or several of a dictionary could be them.
    """
    found: Any = output
    for key in image_path(output):
        found = found[key]
    return found


@runtime_checkable
class GeneratorBuilder(Protocol):
    """What an adapter may also do: build new generators, for training from scratch."""

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


@runtime_checkable
class Rebuilds(Protocol):
    """What an adapter may also do: build a generator from its own description.

    With it, generators can be exported to safetensors and loaded again.
    """

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """The generator that ``describe`` says ``config`` of, with any weights.

        ``config`` comes from a file: nothing in it may be trusted.

        Raises:
            AdapterError: there is no such generator.
        """
        ...


@runtime_checkable
class KnowsUnused(Protocol):
    """What an adapter may also say: which modules of a generator never run, by construction.

    Only these may be removed without being asked for: elsewhere, what ``forward`` does not call
    may be called by something else.
    """

    def unused(self, generator: nn.Module) -> tuple[str, ...]:
        """Names of modules that never run, whatever the generator is called with."""
        ...


@runtime_checkable
class Truncates(Protocol):
    """What an adapter may also do: pull latents towards their mean (Karras et al. 2019, sec. B)."""

    def truncation(self, generator: nn.Module, psi: float) -> Mapping[str, Any]:
        """The keywords of a forward call that truncates; psi 1 changes nothing, 0 gives the mean.

        Raises:
            AdapterError: ``generator`` does not hold the mean of its latents.
        """
        ...


@runtime_checkable
class PersistentAdapter(Adapter, Protocol):
    """An adapter of a codebase whose files bring the source of their classes along.

    Its :attr:`classes` have keys ``(PERSISTENCE, class name)``. Nothing in a file is run: its
    states are read into our own classes, and what is written carries *our* source.
    """

    @property
    def known_sources(self) -> Mapping[str, str]:
        """SHA-256 of released source texts (UTF-8), and whose they are.

        Objects that are carried unread (a discriminator) may bring these texts, and no others.
        """
        ...

    def source(self) -> str:
        """The text of the module that defines our classes; it has to stand alone."""
        ...

    def restored(self, module: nn.Module) -> str | None:
        """Settle ``module``, just read from a file; what is wrong with it, or None."""
        ...


@runtime_checkable
class Follows(Protocol):
    """A module that can adapt itself to a changed input when a model is fitted."""

    def follow(self, student: Any, teacher: Any, wanted: Any) -> None:
        """Adapt, in place.

        Args:
            student: per batch, the arguments of this module's call.
            teacher: per batch, the arguments of the same call in the original model.
            wanted: per batch, what the original returned.
        """
        ...


@runtime_checkable
class ConditionalNorms(Protocol):
    """What an adapter may also say: what its own batch normalisations (``norm_types``) do.

    With it, the training form (:func:`dsconvert.lean`) takes them too. They normalise by the batch
    or by ``stored_mean`` and ``stored_var``, with ``eps`` and ``momentum``; then follow
    gain and bias.
    """

    def affine(self, norm: nn.Module, *condition: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Gain and bias (N, C) for what else the module is called with."""
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


@runtime_checkable
class CheckpointAdapter(Adapter, Protocol):
    """A codebase whose files are ``torch.save`` checkpoints: tensors by name, no classes.

    A file is read with ``torch.load(weights_only=True)``; what these members get from it are
    plain containers, numbers, texts and tensors, and never checked further: expect anything.
    """

    def states(self, checkpoint: Mapping[str, Any]) -> Mapping[str, Mapping[str, torch.Tensor]]:
        """The state dicts of the generators in a file, the one that makes the images first.

        Empty where the file is none of this codebase's. Converted generators are found too; their
        convolutions have other names, and other parameters, behind the original's name.
        """
        ...

    def read_config(self, state: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
        """The arguments of `make`, from names and shapes of an original's state dict."""
        ...

    def make(self, config: Mapping[str, Any]) -> nn.Module:
        """A generator of the original architecture; its weights don't matter."""
        ...

    def replaced(
        self, checkpoint: Mapping[str, Any], states: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> dict[str, Any]:
        """The file's content with these generators' state dicts in place of its own."""
        ...

    def picture(self, model: nn.Module) -> nn.Module:
        """``model``, or a wrapper of it that returns one image tensor (N, C, H, W) in [-1, 1]."""
        ...
