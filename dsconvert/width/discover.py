"""Find the channel groups of a model: label every channel, follow the labels, join them."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable
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
    """Join the units that the same modules write and read into groups.

    A module that reads a part of a map (a U-Net's encoder, of the concatenation that a residual
    block writes) divides it into two groups. So every place of a group holds all of its units: the
    number of channels that a module has left follows from the number of units, whichever stay.
    """
    labels = channels.labels
    places: dict[int, list[tuple[str, str]]] = {}
    tables = {"rows": channels.rows, "columns": channels.columns, "entries": channels.entries}
    for kind, table in tables.items():
        for name, here in table.items():
            for unit in labels.roots(here).tolist():
                if unit != FIXED and (kind == "rows" or unit in places):
                    places.setdefault(unit, []).append((kind, name))
    members: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for unit, found in places.items():
        members.setdefault(tuple(found), []).append(unit)
    groups: list[Group] = []
    all_units: dict[str, Ids] = {}
    live = set(convolutions)
    for found, same in members.items():
        units = np.array(sorted(same), dtype=np.int64)
        producers = tuple(dict.fromkeys(name for kind, name in found if kind == "rows"))
        consumers = tuple(dict.fromkeys(name for kind, name in found if kind == "columns"))
        reason = labels.reason(units)
        if reason is None and not consumers:
            reason = "no convolution or linear layer reads them"
        if reason is None and not live & {*producers, *consumers}:
            reason = "no convolution writes or reads them"
        name = _free_name(producers, all_units)
        groups.append(
            Group(
                name=name,
                channels=len(units),
                producers=producers,
                consumers=consumers,
                locked=reason,
            )
        )
        all_units[name] = units
    return ChannelGroups(tuple(groups), all_units, channels)


def _free_name(producers: tuple[str, ...], taken: Container[str]) -> str:
    """Return the name of the first module that writes a group, with a number if it is taken."""
    numbers = (f"{producers[0]}#{i}" for i in itertools.count(2))
    return next(n for n in itertools.chain(producers[:1], numbers) if n not in taken)
