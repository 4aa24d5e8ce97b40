"""A codebase's generators at other places of a file than that codebase's own code puts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dsconvert.formats.checkpoint.places import ROOT, Place, State, alike, places

if TYPE_CHECKING:
    from torch import nn

    from dsconvert.adapter import Adapter, Sampler


class Placed:
    """An adapter, for a file in which a wrapper (Lightning, an average) has put its generators."""

    def __init__(self, adapter: Adapter, found: tuple[Place, ...]) -> None:
        self._adapter = adapter
        self._places = {place.key or ROOT: place for place in found}

    @property
    def name(self) -> str:
        """The adapter's."""
        return self._adapter.name

    def states(self, checkpoint: Mapping[str, Any]) -> Mapping[str, State]:
        """The generators, by where they are."""
        return {key: place.state(checkpoint) for key, place in self._places.items()}

    def read_config(self, state: State) -> Mapping[str, Any]:
        """See :class:`dsconvert.adapter.Adapter`."""
        return self._adapter.read_config(state)

    def make(self, config: Mapping[str, Any]) -> nn.Module:
        """See :class:`dsconvert.adapter.Adapter`."""
        return self._adapter.make(config)

    def replaced(
        self, checkpoint: Mapping[str, Any], states: Mapping[str, State]
    ) -> dict[str, Any]:
        """The file with these generators replaced, in its own layout and spelling."""
        made = dict(checkpoint)
        for key, state in states.items():
            made = self._places[key].put(made, state)
        bare = any(not self._places[key].path for key in states)
        return {ROOT: made} if bare else made

    def picture(self, model: nn.Module) -> nn.Module:
        """See :class:`dsconvert.adapter.Adapter`."""
        return self._adapter.picture(model)

    def sampler(self, model: nn.Module) -> Sampler | None:
        """See :class:`dsconvert.adapter.Adapter`."""
        return self._adapter.sampler(model)


def placed(adapter: Adapter, content: Mapping[str, Any]) -> Placed | None:
    """``adapter`` for the places at which its generators are; None where there are none."""

    def knows(place: Place) -> bool:
        return bool(adapter.states({ROOT: place.state(content)}))

    found = next((p for p in places(content) if knows(p)), None)
    if found is None:
        return None
    return Placed(adapter, (found, *(p for p in alike(content, found) if knows(p))))
