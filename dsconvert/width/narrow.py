"""A narrower copy of a model, and its convolutions before any weight is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import nn

from dsconvert.errors import PlanError
from dsconvert.model.editing import copied
from dsconvert.records import Group, Site, Sites, Width, within
from dsconvert.width.curves import Curves
from dsconvert.width.groups import ChannelGroups, Kept


def check_widths(groups: ChannelGroups, widths: Sequence[Width], keep: Sequence[str]) -> None:
    """Check the widths of a plan against a model's groups.

    Args:
        groups: of the model.
        widths: of the plan.
        keep: modules whose bytes stay as they are.

    Raises:
        PlanError: a group is unknown, locked or held, or the count is out of range.
    """
    known = {g.name: g for g in groups.groups}
    problems: list[str] = []
    seen: set[str] = set()
    for width in widths:
        group = known.get(width.group)
        if width.group in seen:
            problems.append(f"{width.group} is decided twice")
        seen.add(width.group)
        if group is None:
            problems.append(f"the model has no channel group called {width.group}")
        elif group.channels != width.channels:
            problems.append(f"{width.group} has {group.channels} channels, not {width.channels}")
        elif not 1 <= width.kept <= width.channels:
            problems.append(f"{width.group}: {width.kept} channels are outside 1..{width.channels}")
        elif width.kept < width.channels and (why := held(group, keep)) is not None:
            problems.append(f"{width.group} keeps its channels: {why}")
    if problems:
        raise PlanError(
            f"the plan's widths do not fit this model: {'; '.join(problems)}. Make a new plan for "
            "this model, or mend the lines named here."
        )


def held(group: Group, keep: Sequence[str]) -> str | None:
    """Return why a group keeps all of its channels, or None."""
    if group.locked is not None:
        return group.locked
    pinned = [m for m in (*group.producers, *group.consumers) if within(m, keep)]
    return f"{pinned[0]} is kept on request" if pinned else None


SMALLEST = 8
"""No group gets narrower than this: below it, little time is saved."""
_MULTIPLE = 4
"""Channels come in multiples of this, which vector units like; small groups in ones."""


def rounded(channels: int, share: float) -> int:
    """Return the number of channels nearest to a share that is worth having."""
    count = round(channels * share / _MULTIPLE) * _MULTIPLE
    return max(min(channels, SMALLEST), min(channels, count))


def equal_widths(
    groups: ChannelGroups, share: float, keep: Sequence[str] = (), *, whole: Sequence[str] = ()
) -> tuple[Width, ...]:
    """Return the same share of every group that may get narrower.

    Args:
        groups: of the model.
        share: above 0, up to 1.
        keep: modules whose bytes stay as they are.
        whole: modules whose maps keep all of their channels.
    """
    return tuple(
        Width(
            group=g.name,
            channels=g.channels,
            kept=rounded(g.channels, share),
            reason=f"{100 * share:g} % of every map",
        )
        for g in groups.groups
        if held(g, keep) is None
        and rounded(g.channels, share) < g.channels
        and not set(whole).intersection(g.producers)
    )


def choice(curves: Curves, widths: Sequence[Width]) -> dict[str, tuple[int, ...]]:
    """Return the units that stay, in their original order, for each group that gets narrower."""
    return {
        w.group: tuple(sorted(curves.by_group[w.group].order[: w.kept]))
        for w in widths
        if w.kept < w.channels and w.group in curves.by_group
    }


def narrow(model: nn.Module, groups: ChannelGroups, kept: Kept) -> nn.Module:
    """Return a narrower copy of ``model``; nothing is absorbed yet.

    The norms of the layers that change are folded.
    """
    made = copied(model)
    groups.slice(made, kept)
    return made


def narrow_sites(sites: Sites, groups: ChannelGroups, widths: Sequence[Width]) -> Sites:
    """Return the convolutions as they are once the widths of a plan are applied."""
    kept = {w.group: range(w.kept) for w in widths if w.kept < w.channels}
    if not kept:
        return sites
    removed = groups.removed(kept)
    places = groups.channels

    def left(table: dict[str, object], name: str, count: int) -> int:
        labels = table.get(name)
        if labels is None:
            return count
        staying = groups.staying(labels, removed)  # type: ignore[arg-type]
        return count if staying is None else len(staying)

    def narrower(site: Site) -> Site:
        entries: dict[str, object] = {**places.entries}
        if site.groups > 1:
            inputs = left(entries, site.name, site.in_channels)
            outputs = inputs * (site.out_channels // site.in_channels)
            count = inputs if inputs != site.in_channels else site.groups
        else:
            inputs = left({**places.columns}, site.name, site.in_channels)
            outputs = left({**places.rows}, site.name, site.out_channels)
            count = 1
        if (inputs, outputs) == (site.in_channels, site.out_channels):
            return site
        before = site.in_channels * site.out_channels // site.groups
        after = inputs * outputs // count
        bias = site.out_channels if site.bias else 0
        shapes = (_shape(site.input_shape, inputs), _shape(site.output_shape, outputs))
        return dataclasses.replace(
            site,
            in_channels=inputs,
            out_channels=outputs,
            groups=count,
            params=(site.params - bias) // before * after + (outputs if site.bias else 0),
            macs=None if site.macs is None else site.macs // before * after,
            input_shape=shapes[0],
            output_shape=shapes[1],
        )

    return dataclasses.replace(sites, convolutions=tuple(narrower(s) for s in sites.convolutions))


def _shape(shape: tuple[int, ...] | None, channels: int) -> tuple[int, ...] | None:
    return None if shape is None else (shape[0], channels, *shape[2:])
