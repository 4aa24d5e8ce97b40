"""A module of the user's own as a codebase: ``--module package.path:factory``.

Importing the module runs the user's own code, at his explicit request; no file can ask for it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import one_hot

from dsconvert.adapter import image_tensor
from dsconvert.config.values import class_argument
from dsconvert.errors import UsageError
from dsconvert.formats.base import ModuleSource
from dsconvert.formats.checkpoint.codebase import Codebase
from dsconvert.formats.checkpoint.places import ROOT, Place, alike, named, places
from dsconvert.records.pictures import PictureSpec

if TYPE_CHECKING:
    from dsconvert.adapter import Sampler

_NAMES = (
    "g_ema", "G_ema", "ema", "params_ema", "generator", "netG", "G", "g",
    "state_dict", "model_state_dict", "model", "params",
)  # fmt: skip
"""Entries that usually hold a generator, the averaged ones first."""
_CHANNELS = (1, 3, 4)
"""Channels of pictures."""
_LATENTS = ("z_dim", "latent_dim", "nz")


@dataclass(frozen=True, eq=False)
class _Arguments:
    """A sampler of arguments of one call, each normal latents or uniformly drawn classes."""

    forms: tuple[tuple[int, ...] | str, ...]
    """See :attr:`dsconvert.formats.base.ModuleSource.shapes`."""
    only: int | None = None
    """The one class to draw; None: all of them."""

    @property
    def classes(self) -> int:
        """The number of classes, of the smallest argument with some; 0: there are none."""
        counts = [class_argument(form)[1] for form in self.forms if isinstance(form, str)]
        return min(counts, default=0)

    def of_class(self, label: int) -> _Arguments:
        """Return the sampler of one class."""
        return replace(self, only=label)

    def __call__(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Draw the arguments of one call, batch n."""
        return tuple(self._argument(form, n, generator) for form in self.forms)

    def _argument(
        self, form: tuple[int, ...] | str, n: int, generator: torch.Generator
    ) -> torch.Tensor:
        where = generator.device
        if not isinstance(form, str):
            return torch.randn(n, *form, generator=generator, device=where)
        kind, count = class_argument(form)
        labels = torch.randint(count, (n,), generator=generator, device=where)
        if self.only is not None:
            labels = torch.full_like(labels, self.only)
        return labels if kind == "class" else one_hot(labels, count).float()


class Picture(nn.Module):
    """A generator whose output is the first image that it returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any) -> torch.Tensor:
        """Return one image tensor."""
        return image_tensor(self.model(*args))


class ModuleCodebase(Codebase):
    """A module of the user's own, in place of an adapter."""

    adapter = None
    name = "module"
    remedy = "Check that the factory builds the architecture that was trained."

    def __init__(self, source: ModuleSource) -> None:
        """Import the factory and build the architecture once.

        Raises:
            UsageError: it can't be imported, is not callable, or returns no module.
        """
        self.source = source
        self._factory = _imported(source.factory)
        self._shapes = {k: v.shape for k, v in self.blank({}).state_dict().items()}
        self._names = set(self._shapes)

    def blank(self, config: Mapping[str, Any]) -> nn.Module:  # noqa: ARG002 - the factory has none
        """Call the factory; not on the meta device, since a user's code may do anything.

        Raises:
            UsageError: it fails, or returns no module.
        """
        try:
            model = self._factory()
        except Exception as error:
            raise UsageError(
                f"{self.source.factory}() fails: {type(error).__name__}: {error}. It must return "
                "the generator without being given an argument."
            ) from error
        if not isinstance(model, nn.Module):
            raise UsageError(
                f"{self.source.factory}() returns a {type(model).__name__}, not a torch.nn.Module."
            )
        return model

    def states(
        self, checkpoint: Mapping[str, Any], converted: tuple[str, ...] = ()
    ) -> Mapping[str, Mapping[str, torch.Tensor]]:
        """Return the state dicts that fit the module, or the one under the key that was named.

        Args:
            checkpoint: the file's content.
            converted: see :meth:`Codebase.states`.

        Raises:
            UsageError: nothing is under the key.
        """
        if self.source.key is not None and not _found(checkpoint, self.source.key):
            names = ", ".join(str(k) for k in list(checkpoint)[:10])
            raise UsageError(
                f"--key {self.source.key}: no state dict is there; the file has {names}."
            )
        keys = (self.source.key,) if self.source.key is not None else converted
        if keys and (known := [self._place(checkpoint, k) for k in keys]) and all(known):
            return {k: p.state(checkpoint) for k, p in zip(keys, known, strict=True) if p}
        everywhere = list(places(checkpoint, _NAMES))
        found = next((p for p in everywhere if self._exact(p, checkpoint)), None)
        if found is not None:
            # An average and what it is an average of: the code loads both into one structure.
            others = [p for p in alike(checkpoint, found) if self._exact(p, checkpoint)]
            return {p.key or ROOT: p.state(checkpoint) for p in (found, *others)}
        loose = (p for p in everywhere if not p.prefix and self._fits(set(p.names)))
        return {p.key or ROOT: p.state(checkpoint) for p in islice(loose, 1)}

    def _exact(self, place: Place, checkpoint: Mapping[str, Any]) -> bool:
        """Return whether a place has all of the module's names; below a prefix, its shapes too."""
        if set(place.names) != self._names:
            return False
        return not place.prefix or all(
            v.shape == self._shapes[k] for k, v in place.state(checkpoint).items()
        )

    def _place(self, checkpoint: Mapping[str, Any], key: str) -> Place | None:
        """Return the place that ``key`` names, in the spelling that fits best."""
        found = _found(checkpoint, key)
        best = next((p for p in found if self._exact(p, checkpoint)), None)
        best = best or next((p for p in found if self._fits(set(p.names))), None)
        return best or (found[-1] if found else None)

    def _fits(self, names: set[str]) -> bool:
        """Return whether these may be a converted file's names, each below one of the module's."""
        parents = {n.rpartition(".")[0] for n in self._names}
        covered = [n for n in names if any(n.startswith(f"{p}.") or not p for p in parents)]
        return bool(names & self._names) and len(covered) == len(names)

    def read_config(self, state: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:  # noqa: ARG002
        """Return the factory's name: no more is known."""
        return {"module": self.source.factory}

    def replaced(
        self, checkpoint: Mapping[str, Any], states: Mapping[str, Mapping[str, torch.Tensor]]
    ) -> dict[str, Any]:
        """Return the content with the state dicts replaced, in its own layout and spelling.

        A bare state dict goes under ``state_dict``, since the recipe has to stand beside it.
        """
        made, bare = dict(checkpoint), False
        for name, state in states.items():
            place = self._place(checkpoint, name)
            if place is None:
                raise UsageError(f"the file has no state dict {name}.")
            made = place.put(made, state)
            bare = not place.path
        return {ROOT: made} if bare else made

    def picture(self, model: nn.Module) -> nn.Module:
        """Return ``model`` with its first image as the output."""
        return Picture(model)

    def pictures(self, model: nn.Module) -> PictureSpec | None:
        """Return the pictures that the module may read, by ``--input`` or its first convolution.

        The range of their values is unknown. None where it reads no pictures.
        """
        if self.source.shapes:
            shape = self.source.shapes[0]
            if isinstance(shape, str) or len(self.source.shapes) != 1:
                return None
            if len(shape) != 3 or shape[0] not in _CHANNELS:
                return None
            return PictureSpec(channels=shape[0], values=None, size=min(shape[1:]))
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        if first is None or first.in_channels not in _CHANNELS:
            return None
        return PictureSpec(channels=first.in_channels, values=None)

    def sampler(self, model: nn.Module) -> Sampler | None:
        """Sample the given arguments, or normal latents of the module's own ``z_dim``."""
        shapes = self.source.shapes
        if not shapes:
            size = next((getattr(model, n) for n in _LATENTS if hasattr(model, n)), None)
            if not isinstance(size, int):
                return None
            shapes = ((size,),)
        return _Arguments(shapes)


def _found(checkpoint: Mapping[str, Any], key: str) -> list[Place]:
    """Return the places that ``key`` names; a converted bare state dict is under ``state_dict``."""
    bare = key == ROOT and ROOT not in checkpoint
    return named(checkpoint, "" if bare else key) or named(checkpoint, f"{ROOT}.{key}")


def _imported(spec: str) -> Any:
    module, colon, name = spec.partition(":")
    if not colon or not module or not name:
        raise UsageError(f"--module {spec} is not like package.path:factory.")
    here = str(Path.cwd())
    try:
        # The user's project is the current folder, as with ``python -m``.
        sys.path.insert(0, here)
        try:
            found: Any = importlib.import_module(module)
        finally:
            sys.path.remove(here)
    except Exception as error:
        raise UsageError(
            f"--module {spec}: {module} can't be imported ({type(error).__name__}: {error}). Run "
            "dsconvert in the folder of that package, or install it."
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"--module {spec}: {module} has no {name}.")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"--module {spec} is a {type(found).__name__}; name a function or class.")
    return found
