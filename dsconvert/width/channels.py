"""The labels at every place of a model where channels can be removed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import fx

from dsconvert.width.labels import Axis, Ids, Labels


@dataclass
class Channels:
    """The labels at every place of a model where channels can be removed.

    Attributes:
        labels: the union-find.
        rows: per convolution or linear layer, the labels of its outputs.
        columns: per convolution or linear layer, the labels of its inputs.
        entries: per module with parameters for each channel (a normalisation), their labels.
        tensors: per parameter that ``forward`` reads itself, its labelled axis.
        values: per node of the graph, the labelled axis of its value.
        sizes: per such node, the number of elements of its value.
    """

    labels: Labels = field(default_factory=Labels)
    rows: dict[str, Ids] = field(default_factory=dict)
    columns: dict[str, Ids] = field(default_factory=dict)
    entries: dict[str, Ids] = field(default_factory=dict)
    tensors: dict[str, Axis] = field(default_factory=dict)
    values: dict[fx.Node, Axis] = field(default_factory=dict)
    sizes: dict[fx.Node, int] = field(default_factory=dict)

    def written(self, axis: Axis) -> bool:
        """Return whether a layer writes channels of ``axis``; those of a parameter may be alone."""
        rows = [self.labels.roots(r) for r in self.rows.values()]
        return any(bool(np.isin(self.labels.roots(axis.labels), r).any()) for r in rows)

    def put(self, table: dict[str, Ids], name: str, labels: Ids) -> Ids:
        """Store the labels of a module; a second call of it unites both (one weight serves)."""
        if name not in table:
            table[name] = labels
        elif len(table[name]) == len(labels):
            self.labels.unite(table[name], labels, f"{name} also reads other values")
        else:
            for each in (table[name], labels):
                self.labels.lock(each, f"{name} is called with several numbers of channels")
        return table[name]
