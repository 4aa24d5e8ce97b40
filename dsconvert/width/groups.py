"""Find the channel groups of a model.

Channels that a removal must treat alike (both halves of a gate, the two sides of a residual sum,
an excitation and the map that it scales) form one *unit*. Units that the same modules write and
read form a *group*: a plan says how many of a group's units stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from dsconvert.model.copying import isolated_copy
from dsconvert.model.graph import ConvTypes
from dsconvert.model.norms import fold, norm_kind
from dsconvert.records import Group
from dsconvert.width.channels import Channels
from dsconvert.width.labels import Axis, Ids
from dsconvert.width.slicing import (
    set_counts,
    slice_columns,
    slice_depthwise,
    slice_entries,
    slice_rows,
)

Kept = Mapping[str, Sequence[int]]
"""Per group, the indices of the units that stay."""


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """The groups of a model, and the places of their channels.

    Attributes:
        groups: in the order of execution.
        units: per group, the representative labels of its units.
        channels: labels at every place.
    """

    groups: tuple[Group, ...]
    units: Mapping[str, Ids]
    channels: Channels

    def free(self) -> tuple[Group, ...]:
        """Return the groups that may lose channels."""
        return tuple(g for g in self.groups if g.locked is None)

    def removed(self, kept: Kept) -> Ids:
        """Return the representatives of all removed units."""
        gone = [np.delete(self.units[name], list(units)) for name, units in kept.items()]
        return np.concatenate(gone) if gone else np.zeros(0, np.int64)

    def staying(self, labels: Ids, removed: Ids) -> Tensor | None:
        """Return the positions of ``labels`` that stay, or None if all of them do."""
        alive = ~np.isin(self.channels.labels.roots(labels), removed)
        return None if bool(alive.all()) else torch.from_numpy(np.flatnonzero(alive))

    def changed(self, kept: Kept) -> frozenset[str]:
        """Return the modules that lose channels."""
        removed = self.removed(kept)
        tables = (self.channels.rows, self.channels.columns, self.channels.entries)
        return frozenset(
            name
            for table in tables
            for name, labels in table.items()
            if self.staying(labels, removed) is not None
        )

    def narrowed_nodes(self, kept: Kept) -> dict[fx.Node, tuple[int, Tensor]]:
        """Return, for each value of the graph that loses channels, dimension and positions."""
        removed = self.removed(kept)
        found: dict[fx.Node, tuple[int, Tensor]] = {}
        for node, axis in self.channels.values.items():
            if (staying := self.staying(axis.labels, removed)) is not None:
                found[node] = (axis.dim, staying)
        return found

    def slice(self, model: nn.Module, kept: Kept) -> None:
        """Remove the other channels from ``model``, in place; nothing absorbs them."""
        removed = self.removed(kept)
        places = self.channels
        for name, labels in places.rows.items():
            if (staying := self.staying(labels, removed)) is not None:
                slice_rows(model.get_submodule(name), staying)
        for name, labels in places.columns.items():
            if (staying := self.staying(labels, removed)) is not None:
                slice_columns(model.get_submodule(name), staying)
        for name, labels in places.entries.items():
            if (staying := self.staying(labels, removed)) is not None:
                module: Any = model.get_submodule(name)
                if isinstance(module, ConvTypes):
                    slice_depthwise(module, staying)
                else:
                    slice_entries(module, staying, len(labels))
        for name, axis in places.tensors.items():
            if (staying := self.staying(axis.labels, removed)) is not None:
                _slice_tensor(model, name, axis, staying)


def _slice_tensor(model: nn.Module, name: str, axis: Axis, staying: Tensor) -> None:
    owner, _, key = name.rpartition(".")
    module = model.get_submodule(owner)
    tensor: Tensor = getattr(module, key)
    made = tensor.detach().index_select(axis.dim, staying.to(tensor.device)).clone()
    if isinstance(tensor, nn.Parameter):
        made = nn.Parameter(made, requires_grad=tensor.requires_grad)
    setattr(module, key, made)
    set_counts(module, len(axis.labels), len(staying), inputs=False)


def folded_copy(model: nn.Module) -> nn.Module:
    """Return a copy that may be run and changed, with every weight as it is applied."""
    twin = isolated_copy(model)
    for module in twin.modules():
        if norm_kind(module) != "none":
            fold(module)
    return twin
