"""Find the channel groups of a model: label every channel, follow the labels, join them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import nn

from dsconvert.model.graph import TracedGraph
from dsconvert.model.inputs import like, tensors_of
from dsconvert.model.observe import evaluating
from dsconvert.records import Group, Sites
from dsconvert.width.channels import Channels
from dsconvert.width.confirm import confirmed
from dsconvert.width.follow import Follower
from dsconvert.width.groups import ChannelGroups, folded_copy
from dsconvert.width.labels import FIXED, Ids


def free_groups(
    model: nn.Module,
    traced: TracedGraph,
    sites: Sites,
    arguments: tuple[Any, ...] | None,
) -> ChannelGroups:
    """Find the channel groups of ``model``, which does not change.

    Args:
        model: the original.
        traced: its graph.
        sites: its convolutions; one that is locked keeps all of its channels.
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
        given = like(arguments, twin)
        channels = Follower(twin, traced, locked).run(tensors_of(given))
    found = _grouped(channels, [s.name for s in sites.convolutions])
    return confirmed(twin, found, given)


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
