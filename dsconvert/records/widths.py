"""The channel groups of a model, and the number of channels that a plan keeps of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Group:
    """Channels that can only be removed together with their counterparts in other modules.

    Attributes:
        name: the first module that writes the channels; a further group of that module has a
            number (``conv#2``).
        channels: the number of channels that can be chosen from. A channel may be several rows of
            a weight (both halves of a gate), and rows of several modules (residual sums).
        producers: modules that lose rows.
        consumers: modules that lose columns and absorb the removed channels.
        locked: the reason why the group keeps all of its channels, or None.
    """

    name: str
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    locked: str | None = None


@dataclass(frozen=True, kw_only=True)
class Width:
    """The decision for one channel group: the number of channels kept, and its reason."""

    group: str
    channels: int
    kept: int
    reason: str
