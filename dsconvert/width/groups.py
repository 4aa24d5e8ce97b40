"""Find the channel groups of a model.

Channels that a removal must treat alike (both halves of a gate, the two sides of a residual sum,
an excitation and the map that it scales) form one *unit*. Units that one module writes form a
*group*: a plan says how many of a group's units stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from dsconvert.model.copying import isolated_copy
from dsconvert.model.graph import ConvTypes, TracedGraph
from dsconvert.model.inputs import like, tensors_of
from dsconvert.model.model_types import ModelTypes
from dsconvert.model.norms import fold, norm_kind
from dsconvert.model.observe import evaluating
from dsconvert.records import Group, Sites
from dsconvert.width.follow import Channels, Follower
from dsconvert.width.labels import FIXED, Axis, Ids
from dsconvert.width.slicing import slice_columns, slice_depthwise, slice_entries, slice_rows

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


def find_groups(
    model: nn.Module,
    traced: TracedGraph,
    sites: Sites,
    types: ModelTypes,
    arguments: tuple[Any, ...] | None,
) -> ChannelGroups:
    """Find the channel groups of ``model``, which does not change.

    Args:
        model: the original.
        traced: its graph.
        sites: its convolutions; one that is locked keeps all of its channels.
        types: its own normalisations.
        arguments: of one forward call; None: no groups, since nothing can be run.
    """
    if arguments is None:
        return ChannelGroups((), {}, Channels())
    twin = folded_copy(model)
    locked = {s.name: f"{s.name}: {s.locked}" for s in sites.convolutions if s.locked is not None}
    for site in sites.convolutions:
        if site.custom is not None:
            locked.setdefault(site.name, f"{site.name} is a {site.custom} with its own forward")
    with evaluating(twin):
        channels = Follower(twin, traced, types, locked).run(tensors_of(like(arguments, twin)))
    return _grouped(channels, [s.name for s in sites.convolutions])


def folded_copy(model: nn.Module) -> nn.Module:
    """Return a copy that may be run and changed, with every weight as it is applied."""
    twin = isolated_copy(model)
    for module in twin.modules():
        if norm_kind(module) != "none":
            fold(module)
    return twin


def _grouped(channels: Channels, convolutions: Iterable[str]) -> ChannelGroups:
    """Join the units that one module writes into groups."""
    labels = channels.labels
    written = {name: np.unique(labels.roots(rows)) for name, rows in channels.rows.items()}
    group_of: dict[int, int] = {}
    members: list[list[str]] = []
    for name, units in written.items():
        known = sorted({group_of[u] for u in units.tolist() if u in group_of})
        index = known[0] if known else len(members)
        if not known:
            members.append([])
        members[index].append(name)
        for other in known[1:]:
            members[index] += members[other]
            members[other] = []
            for unit, g in group_of.items():
                group_of[unit] = index if g == other else g
        for unit in units.tolist():
            group_of[unit] = index
    groups: list[Group] = []
    all_units: dict[str, Ids] = {}
    live = set(convolutions)
    for index, producers in enumerate(members):
        units = np.array(sorted(u for u, g in group_of.items() if g == index), dtype=np.int64)
        if not producers or FIXED in units:
            continue
        consumers = tuple(
            name
            for name, columns in channels.columns.items()
            if bool(np.isin(labels.roots(columns), units).any())
        )
        reason = labels.reason(units)
        if reason is None and not consumers:
            reason = "no convolution or linear layer reads them"
        if reason is None and not live & {*producers, *consumers}:
            reason = "no convolution writes or reads them"
        name = producers[0]
        groups.append(
            Group(
                name=name,
                channels=len(units),
                producers=tuple(producers),
                consumers=consumers,
                locked=reason,
            )
        )
        all_units[name] = units
    return ChannelGroups(tuple(groups), all_units, channels)
