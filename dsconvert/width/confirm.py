"""Confirm that groups were found correctly: a narrower model is the original without channels.

Removed channels reach the output through the columns of their consumers alone. So the original
with these columns set to zero, and a copy without the channels, compute the same. A group for which
they do not (the code depends on the number of channels in a way that the graph does not show) is
locked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.model.copying import isolated_copy
from dsconvert.model.inputs import fresh_args, tensors_of
from dsconvert.model.observe import evaluating
from dsconvert.records import Group
from dsconvert.width.groups import ChannelGroups, Kept
from dsconvert.width.slicing import zero_columns

_TOLERANCE = 1e-3
_REASON = "its code depends on the number of channels"
_SHARES = (1 / 4, 1 / 2, 3 / 4)
"""Shares of its channels that a group keeps."""
_DRAWS = 3
"""Choices of channels that are tried: at random, the first ones, the last ones."""


def confirmed(model: nn.Module, groups: ChannelGroups, arguments: tuple[Any, ...]) -> ChannelGroups:
    """Return ``groups``, those locked that do not pass the check above.

    Args:
        model: a copy with norms folded, which may be run; it does not change.
        groups: of the model.
        arguments: of one forward call.
    """
    while (free := groups.free()) and not _same(model, groups, free, arguments):
        wrong = {g.name for g in free if not _same(model, groups, [g], arguments)}
        # If each passes alone and all together do not, none can be trusted.
        wrong = wrong or {g.name for g in free}
        locked = tuple(
            dataclasses.replace(g, locked=_REASON) if g.name in wrong else g for g in groups.groups
        )
        groups = dataclasses.replace(groups, groups=locked)
    return groups


def _same(
    model: nn.Module, groups: ChannelGroups, some: Sequence[Group], arguments: tuple[Any, ...]
) -> bool:
    """Return whether a narrower copy computes what the check asks for, in every draw."""
    return all(_same_for(model, groups, _choice(some, draw), arguments) for draw in range(_DRAWS))


def _choice(some: Sequence[Group], draw: int) -> Kept:
    """Return the channels that one draw keeps.

    Code such as ``chunk`` works by luck where its parts happen to keep equally many channels. So
    neighbouring groups keep different shares, and any two of the first 27 do in one of the draws.
    """
    generator = torch.Generator().manual_seed(0)
    kept: dict[str, list[int]] = {}
    for index, group in enumerate(some):
        order = torch.randperm(group.channels, generator=generator, device="cpu").tolist()
        order = (order, sorted(order), sorted(order, reverse=True))[draw]
        share = _SHARES[index // len(_SHARES) ** draw % len(_SHARES)]
        kept[group.name] = order[: max(1, round(group.channels * share))]
    return kept


def _same_for(
    model: nn.Module, groups: ChannelGroups, kept: Kept, arguments: tuple[Any, ...]
) -> bool:
    try:
        narrow = isolated_copy(model)
        groups.slice(narrow, kept)
        got, wanted = _run(narrow, arguments), _run(_silenced(model, groups, kept), arguments)
    except Exception:  # the model's own code may fail in any way on fewer channels
        return False
    if len(got) != len(wanted):
        return False
    return all(
        a.shape == b.shape and float((a - b).abs().max()) <= _TOLERANCE * _peak(b)
        for a, b in zip(got, wanted, strict=True)
    )


def _peak(value: Tensor) -> float:
    return max(float(value.abs().max()), 1e-6)


def _silenced(model: nn.Module, groups: ChannelGroups, kept: Kept) -> nn.Module:
    """Return a copy whose consumers ignore the removed channels."""
    twin = isolated_copy(model)
    removed = groups.removed(kept)
    for name, labels in groups.channels.columns.items():
        if (staying := groups.staying(labels, removed)) is not None:
            gone = torch.ones(len(labels), dtype=torch.bool, device="cpu")
            gone[staying] = False
            zero_columns(twin.get_submodule(name), gone.nonzero().flatten())
    return twin


def _run(model: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    with evaluating(model):
        torch.manual_seed(0)
        return [t.double() for t in tensors_of(model(*fresh_args(arguments))) if t.numel()]
