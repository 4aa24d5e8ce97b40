"""The code that a checkpoint belongs to: an installed adapter, or a module of the user's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dsconvert.adapter import Adapter, adapters
from dsconvert.errors import UnsupportedSnapshotError
from dsconvert.formats.bounded import bounded
from dsconvert.formats.checkpoint.beside import settings
from dsconvert.formats.checkpoint.places import ROOT, Place, State, alike, elements, named, places
from dsconvert.formats.restructure import restructure
from dsconvert.model.blank import blank
from dsconvert.model.inputs import adapter_inputs

if TYPE_CHECKING:
    from dsconvert.adapter import Sampler
    from dsconvert.records.pictures import PictureSpec

UNEXPECTED = (
    AttributeError, TypeError, ValueError, LookupError, ArithmeticError, RuntimeError,
)  # fmt: skip
"""Errors that code which expects an honest file may raise on another."""


class Codebase(ABC):
    """Finds and builds the generators of a checkpoint."""

    adapter: Adapter | None
    """None for a module of the user's own."""
    name: str
    """For messages, and for the mark of a converted file."""
    remedy: str
    """The advice for tensors that do not fit the architecture."""

    @abstractmethod
    def states(
        self, checkpoint: Mapping[str, Any], converted: tuple[str, ...] = ()
    ) -> Mapping[str, State]:
        """Return the state dicts of the generators, the main one first; empty where none fits.

        Args:
            checkpoint: the content of the file.
            converted: the names that this method gave the generators of the file's original, where
                the file is a converted one.
        """

    @abstractmethod
    def read_config(self, state: State) -> Mapping[str, Any]:
        """Return the arguments of :meth:`blank`, from an original's state dict."""

    @abstractmethod
    def blank(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the original architecture, without memory for its weights where that works."""

    def completed(self, config: Mapping[str, Any], path: Path) -> Mapping[str, Any]:  # noqa: ARG002
        """Return ``config`` with the facts of a settings file beside ``path``; default: as it is.

        Raises:
            AdapterError: that file does not fit, or is needed and missing.
            CorruptSnapshotError: it is no JSON object.
        """
        return config

    @abstractmethod
    def replaced(
        self, checkpoint: Mapping[str, Any], states: Mapping[str, State]
    ) -> dict[str, Any]:
        """Return the file's content with these state dicts in place of its generators' own."""

    @abstractmethod
    def sampler(self, model: nn.Module) -> Sampler | None:
        """Return a sampler of inputs; None where they are unknown."""

    @abstractmethod
    def pictures(self, model: nn.Module) -> PictureSpec | None:
        """Return the pictures that ``model`` reads; None where it reads none."""

    @abstractmethod
    def picture(self, model: nn.Module) -> nn.Module:
        """Return ``model`` as a module that returns one image tensor."""


class AdapterCodebase(Codebase):
    """An adapter; with ``found``, for generators at other places than its own code puts them.

    A wrapper (Lightning, an average) may have put them there.
    """

    remedy = "It was not written by that code, or by a version that is not known here."

    def __init__(self, adapter: Adapter, found: tuple[Place, ...] = ()) -> None:
        self.adapter = self._adapter = adapter
        self.name = adapter.name
        self._places = {place.key or ROOT: place for place in found}

    def states(
        self,
        checkpoint: Mapping[str, Any],
        converted: tuple[str, ...] = (),  # noqa: ARG002 - an adapter finds them by itself
    ) -> Mapping[str, State]:
        """Return the generators by the adapter's names, or by their places."""
        if not self._places:
            return self._adapter.states(checkpoint)
        return {key: place.state(checkpoint) for key, place in self._places.items()}

    def read_config(self, state: State) -> Mapping[str, Any]:
        """See :meth:`dsconvert.adapter.Adapter.read_config`."""
        return self._adapter.read_config(state)

    def blank(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the architecture on the meta device."""
        with blank():
            return self._adapter.make(config)

    def completed(self, config: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
        """See :meth:`dsconvert.adapter.Adapter.completed`."""
        name = self._adapter.settings_file
        return config if name is None else self._adapter.completed(config, settings(path, name))

    def replaced(
        self, checkpoint: Mapping[str, Any], states: Mapping[str, State]
    ) -> dict[str, Any]:
        """Return the content with these generators, in the file's own layout and spelling."""
        if not self._places:
            return self._adapter.replaced(checkpoint, states)
        made = dict(checkpoint)
        for key, state in states.items():
            made = self._places[key].put(made, state)
        bare = any(not self._places[key].path for key in states)
        return {ROOT: made} if bare else made

    def sampler(self, model: nn.Module) -> Sampler | None:
        """See :meth:`dsconvert.adapter.Adapter.sampler`."""
        return adapter_inputs(self._adapter, model)

    def pictures(self, model: nn.Module) -> PictureSpec | None:
        """See :meth:`dsconvert.adapter.Adapter.pictures`."""
        return self._adapter.pictures(model)

    def picture(self, model: nn.Module) -> nn.Module:
        """See :meth:`dsconvert.adapter.Adapter.picture`."""
        return self._adapter.picture(model)


def _placed(
    adapter: Adapter, content: Mapping[str, Any], mark: Mapping[str, Any] | None
) -> AdapterCodebase | None:
    """Return ``adapter`` for the places at which its generators are; None where there are none."""

    def knows(place: Place) -> bool:
        state = place.state(content)
        with suppress(*UNEXPECTED):
            if adapter.states({ROOT: state}):
                return True
        # An adapter that builds what it finds can't make sense of a converted one.
        with suppress(*UNEXPECTED):
            return _fits(adapter, state, mark)
        return False

    if mark is not None:
        marked = [next(filter(knows, named(content, key)), None) for key in mark["recipes"]]
        if marked and all(marked):
            return AdapterCodebase(adapter, tuple(p for p in marked if p is not None))
    found = next((p for p in places(content) if knows(p)), None)
    if found is None:
        return None
    return AdapterCodebase(adapter, (found, *(p for p in alike(content, found) if knows(p))))


def _fits(adapter: Adapter, state: State, mark: Mapping[str, Any] | None) -> bool:
    """Return whether a generator of ``adapter`` has exactly the tensors of ``state``.

    A converted file's ``mark`` tells the configuration, and by its recipes the changes.
    """
    if mark is not None and mark["adapter"] != adapter.name:
        return False
    config = adapter.read_config(state) if mark is None else mark["config"]
    recipes = [None] if mark is None else [None, *mark["recipes"].values()]
    wanted = {name: tensor.shape for name, tensor in state.items()}
    for recipe in recipes:
        with bounded(elements(state)), torch.device("meta"):
            model = adapter.make(config)
            if recipe is not None:
                restructure(model, recipe)
        if {name: tensor.shape for name, tensor in model.state_dict().items()} == wanted:
            return True
    return False


def find_codebase(
    path: Path,
    content: Mapping[str, Any],
    given: Sequence[Adapter] = (),
    mark: Mapping[str, Any] | None = None,
) -> Codebase:
    """Return the adapter, one of ``given`` first, that knows a file's content.

    A state dict that stands elsewhere than in the codebase's own files (alone, under the prefix
    of a wrapper, in a safetensors file) is known by its tensors' names and shapes.

    Args:
        path: of the file, for messages.
        content: without the entry of a conversion.
        given: asked before the installed adapters.
        mark: that entry, where the file is a converted one.

    Raises:
        UnsupportedSnapshotError: none does.
    """
    known = [a for a in adapters(given) if a.has_checkpoints]
    defects = ""
    for adapter in known:
        try:
            states = adapter.states(content)
        except UNEXPECTED as error:
            if mark is not None:
                continue
            defects += f"; it looks like a file of {adapter.name}, but {error}"
            continue
        if states:
            return AdapterCodebase(adapter)
    for adapter in known if not defects else ():
        with suppress(*UNEXPECTED):
            if (elsewhere := _placed(adapter, content, mark)) is not None:
                return elsewhere
    entries = ", ".join(list(content)[:12]) or "none"
    raise UnsupportedSnapshotError(
        f"{path} is a checkpoint that no installed adapter knows (its entries: {entries}; known "
        f"codebases: {', '.join(a.name for a in known) or 'none'}{defects}). Say how its "
        "generator is built and called: --module package.path:factory, and --input SHAPE for each "
        "argument."
    )
