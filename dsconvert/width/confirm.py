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


def confirmed(model: nn.Module, groups: ChannelGroups, arguments: tuple[Any, ...]) -> ChannelGroups:
    """Return ``groups``, those locked that do not pass the check above.

    Args:
        model: a copy with norms folded, which may be run; it does not change.
        groups: of the model.
        arguments: of one forward call.
    """
    free = groups.free()
    if not free or _same(model, groups, free, arguments):
        return groups
    wrong = {g.name for g in free if not _same(model, groups, [g], arguments)}
    # If each passes alone and all together do not, none can be trusted.
    wrong = wrong or {g.name for g in free}
    locked = tuple(
        dataclasses.replace(g, locked=_REASON) if g.name in wrong else g for g in groups.groups
    )
    return dataclasses.replace(groups, groups=locked)


def _same(
    model: nn.Module, groups: ChannelGroups, some: Sequence[Group], arguments: tuple[Any, ...]
) -> bool:
    draw = torch.Generator().manual_seed(0)
    kept = {
        g.name: torch.randperm(g.channels, generator=draw, device="cpu")[
            : max(1, g.channels // 2)
        ].tolist()
        for g in some
        if g.channels > 1
    }
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
