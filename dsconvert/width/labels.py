"""Labels of channels: a union-find over every channel that a module of the graph writes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
FIXED = -1
"""The label of a position that no removal can touch (a latent, a constant)."""


@dataclass(frozen=True, eq=False)
class Axis:
    """The labels along the channel dimension ``dim`` of one value of the graph."""

    dim: int
    labels: Ids


class Labels:
    """A union-find over channels; channels that were united are kept or removed together.

    A locked channel is never removed; the first reason given for it stays.
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._locked: dict[int, str] = {}

    def new(self, count: int) -> Ids:
        """Return ``count`` new labels."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def _root(self, label: int) -> int:
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def roots(self, labels: Ids) -> Ids:
        """Return the representative of each label; :data:`FIXED` stays."""
        found = (i if i == FIXED else self._root(i) for i in labels.tolist())
        return np.fromiter(found, np.int64, len(labels))

    def unite(self, first: Ids, second: Ids, reason: str) -> None:
        """Unite labels position by position; one that meets :data:`FIXED` is locked."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            if a == FIXED or b == FIXED:
                self._lock([a, b], reason)
                continue
            one, other = self._root(a), self._root(b)
            if one == other:
                continue
            self._parent[max(one, other)] = min(one, other)
            lost = self._locked.pop(max(one, other), None)
            if lost is not None:
                self._locked.setdefault(min(one, other), lost)

    def lock(self, labels: Ids, reason: str) -> None:
        """Keep these channels whatever is asked."""
        self._lock(np.unique(labels).tolist(), reason)

    def _lock(self, labels: Iterable[int], reason: str) -> None:
        for label in labels:
            if label != FIXED:
                self._locked.setdefault(self._root(label), reason)

    def reason(self, roots: Ids) -> str | None:
        """Return why one of these representatives is locked, or None."""
        return next((self._locked[i] for i in roots.tolist() if i in self._locked), None)
