"""Find out by running it whether a module works channel by channel."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dsconvert.width.slicing import has_entries, slice_entries

_TRIALS = 2
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Structure:
    """The structure of a module: ``halves``: a gate; ``entries``: it has channel parameters."""

    halves: bool
    entries: bool


def part_of_channels(
    module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], dim: int
) -> Structure | None:
    """Return how ``module`` works on channels, or None if it mixes or counts them.

    Its result on some of the channels must be that part of its result on all of them. The first
    argument is the map; noise is drawn from the same seed each time.

    Args:
        module: does not change; a copy runs on parts.
        args: positional arguments of a call.
        named: keyword arguments of a call.
        dim: the channel dimension of the first argument.
    """
    x: Tensor = args[0]
    whole = _run(module, x, args, named)
    if not isinstance(whole, Tensor) or whole.ndim != x.ndim:
        return None
    size = x.shape[dim]
    halves = size % 2 == 0 and whole.shape[dim] == size // 2
    if whole.shape[dim] != size and not halves:
        return None
    # A tensor of as many entries may be no channel's: first the module as it is. A norm counts its
    # channels also where it has no tensor for them (nn.InstanceNorm2d), and warns of other inputs.
    counted = vars(module).get("num_features") == size
    for entries in (True,) if counted else (False, True) if has_entries(module, size) else (False,):
        if _holds(module, args, named, dim, whole, halves=halves, entries=entries):
            return Structure(halves, entries)
    return None


def _holds(
    module: nn.Module,
    args: tuple[Any, ...],
    named: dict[str, Any],
    dim: int,
    whole: Tensor,
    *,
    halves: bool,
    entries: bool,
) -> bool:
    """Return whether results on parts of the channels are parts of the result on all of them."""
    x: Tensor = args[0]
    size = x.shape[dim]
    free = size // 2 if halves else size
    for trial in range(_TRIALS):
        draw = torch.Generator().manual_seed(trial)
        order = torch.randperm(free, generator=draw, device="cpu")
        kept = order[: max(1, free // 2)].sort().values.to(x.device)
        taken = torch.cat([kept, kept + free]) if halves else kept
        try:
            part = module
            if entries:
                part = copy.deepcopy(module)
                slice_entries(part, taken, size)
            got = _run(part, x.index_select(dim, taken), args, named)
        except Exception:  # a module may fail in any way on fewer channels
            return False
        wanted = whole.index_select(dim, kept)
        if not isinstance(got, Tensor) or got.shape != wanted.shape:
            return False
        limit = _TOLERANCE * float(wanted.abs().max().clamp_min(1e-6))
        if not float((got - wanted).abs().max()) <= limit:
            return False
    return True


def _run(module: nn.Module, x: Tensor, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return module(x.clone(), *args[1:], **named)
